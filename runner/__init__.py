"""The runner process: one per loaded model. It loads the model and answers requests that the gateway sends over a pipe."""
