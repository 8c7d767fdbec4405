"""Generation: sampling rules, and the loop on the device that applies them."""
