"""What can be known of a run before it starts: is everything there, does it fit, how long will it take."""
