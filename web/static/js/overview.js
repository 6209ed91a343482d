// Overview.
