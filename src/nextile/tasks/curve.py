"""The losses of a run as pictures: curve.html for the browser, curve.png where matplotlib is installed."""
