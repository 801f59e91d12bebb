"""How right: accuracy on the test set, and distance from the teacher and the row before."""
