"""The runner process, one per loaded model: it loads the model and answers requests from the gateway's pipe."""
