//! What the demo shows: a panel that is drawn over itself on a terminal, plain lines in a pipe.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// One look at the whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look {
    /// Seconds since the beginning.
    pub at: Duration,
    /// The node answers.
    pub alive: bool,
    /// State of the link and why.
    pub link: String,
    /// The mode of the box.
    pub mode: String,
    /// Acknowledged to devices.
    pub acknowledged: usize,
    /// Of these, arrived.
    pub arrived: usize,
    /// Sensor readings of the box that arrived.
    pub readings: u64,
    /// Waiting in the node.
    pub queued: u64,
    /// Bytes on the node's disk.
    pub disk_bytes: u64,
    /// The node's resident memory in KiB.
    pub memory_kib: u64,
}

/// The screen.
pub struct Screen {
    terminal: bool,
    drawn: usize,
    last: Option<(String, Duration)>,
    most_queued: u64,
}

impl Screen {
    /// On standard output.
    pub fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), drawn: 0, last: None, most_queued: 1 }
    }

    fn put(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        // A reader that went away misses the rest; the verdict is in the exit code too.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn style(&self, code: &str, text: &str) -> String {
        if self.terminal { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn clear(&mut self) {
        if self.terminal && self.drawn > 0 {
            self.put(&format!("\x1b[{}A\x1b[J", self.drawn));
        }
        self.drawn = 0;
    }

    /// A line of the story; it stays.
    pub fn say(&mut self, at: Duration, text: &str) {
        self.clear();
        let line = format!("{} {text}\n", self.style("2", &format!("{:5.1} s", at.as_secs_f64())));
        self.put(&line);
        self.last = None;
    }

    /// A line without a time.
    pub fn line(&mut self, text: &str) {
        self.clear();
        self.put(&format!("{text}\n"));
    }

    /// Shows how it stands: always on a terminal, on change or each two seconds in a pipe.
    pub fn show(&mut self, look: &Look) {
        let state = if look.alive { look.link.clone() } else { "gone (the node is down)".to_owned() };
        let mode = if look.alive { look.mode.as_str() } else { "none" };
        if !self.terminal {
            let shown = format!("{state} {mode}");
            let due = self.last.as_ref().is_none_or(|(s, at)| *s != shown || look.at.saturating_sub(*at) >= Duration::from_secs(2));
            if due && !look.alive {
                self.put(&format!(
                    "{:5.1} s   the node is down: nobody can ask it; acknowledged {}, arrived {}\n",
                    look.at.as_secs_f64(),
                    look.acknowledged,
                    look.arrived
                ));
                self.last = Some((shown, look.at));
            } else if due {
                self.put(&format!(
                    "{:5.1} s   link {state}, mode {mode}; acknowledged {}, arrived {}, queued {}, sensor readings {}, disk {} KiB, memory {} KiB\n",
                    look.at.as_secs_f64(),
                    look.acknowledged,
                    look.arrived,
                    look.queued,
                    look.readings,
                    look.disk_bytes >> 10,
                    look.memory_kib
                ));
                self.last = Some((shown, look.at));
            }
            return;
        }
        self.clear();
        self.most_queued = self.most_queued.max(look.queued);
        let width = 40;
        let filled = (look.queued * width / self.most_queued) as usize;
        let bar: String = "█".repeat(filled) + &"·".repeat(width as usize - filled);
        let colour = if !look.alive || state.starts_with("down") || state.starts_with("fenced") {
            "31;1"
        } else if state.starts_with("up") {
            "32;1"
        } else {
            "33;1"
        };
        let mut text = String::new();
        let _ = writeln!(text, "  ┌ devices ──▶ node ──▶ cloud      link {}   mode {mode}", self.style(colour, &state));
        let _ = writeln!(text, "  │ acknowledged {:>7}   arrived {:>7}   sensor readings {:>5}", look.acknowledged, look.arrived, look.readings);
        let _ = writeln!(text, "  │ queued       {:>7}   {bar}", look.queued);
        let _ = writeln!(text, "  └ disk {:>6} KiB   memory {:>6} KiB", look.disk_bytes >> 10, look.memory_kib);
        self.drawn = 4;
        self.put(&text);
    }

    /// Green or red.
    pub fn verdict(&mut self, well: bool, text: &str) {
        self.clear();
        let word = self.style(if well { "32;1" } else { "31;1" }, if well { "WELL" } else { "LOST" });
        self.put(&format!("\n{word}  {text}\n"));
    }
}
