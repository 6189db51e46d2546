//! What commands print: to standard output, whose reader may go away (`selvedge help | head`).

use std::io::Write as _;

/// Prints a line, as `println!` does; when nobody reads any more the process ends, well.
macro_rules! say {
    () => { $crate::say::line(format_args!("")) };
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// One line.
pub fn line(text: std::fmt::Arguments<'_>) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        // Of commands alone: a node logs another way.
        std::process::exit(0);
    }
}
