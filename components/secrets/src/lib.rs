//! Secret stores: environment and file.
