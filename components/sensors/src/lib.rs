//! Host sensors input binding: hwmon, thermal zones and proc.
