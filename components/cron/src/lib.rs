//! Cron input binding.
