//! HTTP output binding.
