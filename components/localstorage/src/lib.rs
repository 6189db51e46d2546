//! Local file output binding.
