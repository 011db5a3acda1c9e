"""The network of UniAD, one file per part; attribute names are the checkpoint's keys."""
