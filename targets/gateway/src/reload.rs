//! SIGHUP and `selvedge reload`: reads the folders of YAML again and gives the running node what can change without dropping a connection.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sd_notify::NotifyState;
use selvedge::node::{Reload, ReloadHandle};
use selvedge::resource::{Resources, Severity, load};
use selvedge::telemetry::logs::{LogLevel, level_name};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::flags::{Flags, UsageError};
use crate::say::say;
use crate::{control, run, serve_api};

/// The level of the log.
#[derive(Debug, Clone)]
pub struct Level {
    /// The one that holds.
    pub now: LogLevel,
    /// `--log-level`: what holds where no `Logging` says otherwise.
    pub at_start: tracing::Level,
}

impl Level {
    /// Puts a level in place; the line for people if it is another one.
    fn change(&self, level: tracing::Level) -> Option<String> {
        let before = self.now.set(level);
        (before != level).then(|| format!("log level: {} (was {})", level_name(level), level_name(before)))
    }
}

/// Where the resources were read from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// `--resources-path` and `--components-path`.
    pub folders: Vec<PathBuf>,
    /// Changes with them.
    pub log_level: Level,
    /// `--app-id`.
    pub app_id: String,
    /// `$NAMESPACE`.
    pub namespace: Option<String>,
}

impl Sources {
    /// Reads them strictly, as `selvedge check` does.
    fn read(&self) -> Result<Resources, Vec<String>> {
        if self.folders.is_empty() {
            return Err(vec!["there is nothing to read: the node was started without --resources-path".to_owned()]);
        }
        let environment = |name: &str| std::env::var(name).ok();
        let resources = load(&self.folders, &self.app_id, self.namespace.as_deref(), &environment).map_err(|e| vec![e.to_string()])?;
        let mut errors: Vec<String> = resources.problems.iter().filter(|p| p.severity != Severity::Warning).map(ToString::to_string).collect();
        errors.extend(resources.duplicate_components.clone());
        errors.extend(resources.subscriptions.iter().filter_map(|s| serve_api::check_routes(s).err()).map(|e| e.to_string()));
        if errors.is_empty() { Ok(resources) } else { Err(errors) }
    }
}

/// Reloads, one at a time. Clones share it.
#[derive(Debug, Clone)]
pub struct Reloader {
    sources: Arc<Sources>,
    node: ReloadHandle,
    turn: Arc<Mutex<()>>,
    /// The service manager knows that the node is ready; before that it is told nothing of reloads.
    announced: Arc<AtomicBool>,
}

impl Reloader {
    /// For a node that was started from these sources.
    pub fn new(sources: Sources, node: ReloadHandle) -> Self {
        Self { sources: Arc::new(sources), node, turn: Arc::default(), announced: Arc::default() }
    }

    /// From now on the service manager is told of reloads.
    pub fn announce(&self) {
        self.announced.store(true, Ordering::Relaxed);
    }

    /// Reads everything again; says in the log, to the service manager and in the answer what came of it: `live`, `restart` or `errors`,
    /// each a list of lines. `level` holds for the log until the next reload; without it what the resources say does, or the flag of the start.
    pub async fn reload(&self, level: Option<tracing::Level>) -> Value {
        let _turn = self.turn.lock().await;
        self.tell(NotifyState::Reloading);
        let sources = self.sources.clone();
        if let Some(level) = level.filter(|_| sources.folders.is_empty()) {
            let live: Vec<String> = sources.log_level.change(level).into_iter().collect();
            self.tell(NotifyState::Ready);
            return json!({"live": live, "restart": []});
        }
        let read = tokio::task::spawn_blocking(move || sources.read()).await.unwrap_or_else(|e| Err(vec![e.to_string()]));
        let applied = match read {
            Ok(mut wanted) => {
                let wanted_level = level.or(wanted.log_level.take()).unwrap_or(self.sources.log_level.at_start);
                self.node.apply(&wanted).await.map(|mut reload| {
                    reload.live.extend(self.sources.log_level.change(wanted_level));
                    reload
                })
            }
            Err(errors) => Err(errors),
        };
        let answer = match applied {
            Ok(Reload { live, restart }) => {
                for line in &live {
                    tracing::info!("reloaded: {line}");
                }
                for line in &restart {
                    tracing::warn!("needs a restart: {line}");
                }
                tracing::info!(live = live.len(), restart = restart.len(), "the resources have been read again");
                json!({"live": live, "restart": restart})
            }
            Err(errors) => {
                for error in &errors {
                    tracing::error!("not reloaded: {error}");
                }
                tracing::error!(errors = errors.len(), "the resources have mistakes; the node goes on as it was");
                json!({"errors": errors})
            }
        };
        self.tell(NotifyState::Ready);
        answer
    }

    /// Tells the service manager, with the time that it wants beside `RELOADING=1`. Without one there is nobody to tell.
    fn tell(&self, state: NotifyState<'static>) {
        let mut states = vec![state];
        if matches!(states.first(), Some(NotifyState::Reloading)) {
            states.extend(NotifyState::monotonic_usec_now().ok());
        }
        if self.announced.load(Ordering::Relaxed) {
            let _ = sd_notify::notify(&states);
        }
    }
}

/// `selvedge reload`: exit code 1 when the node does not answer, or refuses what it has read.
pub fn reload(flags: &Flags) -> Result<ExitCode, UsageError> {
    let question = match flags.text("log-level") {
        None => "reload".to_owned(),
        Some(_) => format!("reload {}", level_name(run::level(flags)?)),
    };
    let answer = match control::ask_flags(flags, &question) {
        Ok(answer) => answer,
        Err(code) => return Ok(code),
    };
    if flags.switch("json", false) {
        say!("{answer:#}");
    } else {
        say!("{}", show(&answer));
    }
    Ok(if answer["errors"].is_null() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The answer for people.
fn show(answer: &Value) -> String {
    let lines = |key: &str, before: &str| -> Vec<String> {
        answer[key].as_array().map(Vec::as_slice).unwrap_or_default().iter().filter_map(Value::as_str).map(|l| format!("{before}: {l}")).collect()
    };
    let all = [lines("errors", "not reloaded"), lines("live", "reloaded"), lines("restart", "needs a restart")].concat();
    if all.is_empty() { "nothing has changed".to_owned() } else { all.join("\n") }
}
