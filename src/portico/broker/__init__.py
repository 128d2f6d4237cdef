"""The broker, the only process with root: 500 lines at most, so that it can be read in one sitting."""
