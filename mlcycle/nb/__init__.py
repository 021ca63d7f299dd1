"""What a notebook is: its parameters, the code it reaches, its fingerprint, its HTML."""
