"""One module per engine; each names its class ``ENGINE``."""
