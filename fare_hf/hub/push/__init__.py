"""Publishing a folder on the Hub: looked at before, continued after a break, nothing sent twice."""
