//! The built-in pub/sub local: what devices and applications on this box share.
