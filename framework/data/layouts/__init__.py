"""Public layouts of data sets, recognised by their columns: a file a kind of data, a small class a layout."""
