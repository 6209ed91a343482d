"""Every family, at every number of bits, answers right over HTTP."""
