//! Generated messages and services.
