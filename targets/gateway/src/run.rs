//! Running the node: configuration, build, serve, drain, exit code.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use selvedge::component::{Fut, InheritedSockets};
use selvedge::node::{Node, NodeConfig};
use selvedge::resource::{
    ComponentSpec, ConfigurationSpec, ListenerLimits, ListenerProtocol, ListenerSpec, Origin, PropertySource, PropertyValue, Resources, Severity,
    load, load_configuration,
};
use selvedge::telemetry::Metrics;
use selvedge::telemetry::journal::{self, Journal};
use selvedge::telemetry::logs::{self, LogLevel};
use selvedge::time::{Clock, SystemClock, Timestamp};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::flags::{Flags, UsageError};
use crate::reload::{Level, Reloader, Sources};
use crate::serve_api::Doors;
use crate::{activation, components, control, doctor, serve_api};

/// How long readiness waits for the application's subscriptions.
const ATTACH: Duration = Duration::from_secs(2);
/// How often freed memory is given back to the system.
const GIVE_BACK: Duration = Duration::from_secs(5);

/// Where devices come in without YAML.
const DEFAULT_LISTENER: &str = "127.0.0.1:1883";

/// What is there without YAML.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Nothing, as daprd.
    Sidecar,
    /// Working defaults.
    Newcomer,
}

/// Where the node keeps what lasts: `--data-dir`, `$STATE_DIRECTORY`, the user's state directory.
pub fn data_dir(flags: &Flags, app_id: &str) -> PathBuf {
    if let Some(dir) = flags.text("data-dir") {
        return PathBuf::from(dir);
    }
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = variable("STATE_DIRECTORY") {
        return dir;
    }
    let base = variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|h| h.join(".local/state"))).unwrap_or_else(|| PathBuf::from("/var/lib"));
    base.join("selvedge").join(app_id)
}

/// The data folder of the node that a command is about: as above, and the packages' where that is there and no node runs here.
pub fn data_dir_of_node(flags: &Flags) -> PathBuf {
    const PACKAGES: &str = "/var/lib/selvedge";
    let own = data_dir(flags, flags.text("app-id").unwrap_or("selvedge"));
    let packages = PathBuf::from(PACKAGES);
    // Of a folder that only its owner may enter it is seen that it is there, not what is in it.
    let elsewhere = flags.text("data-dir").is_none() && !control::path(&own).exists() && packages.is_dir();
    if elsewhere { packages } else { own }
}

/// When the node last wrote into its data folder.
fn last_known_time(data_dir: &Path) -> Timestamp {
    let written = |path: PathBuf| path.metadata().and_then(|m| m.modified()).ok();
    let outbox = data_dir.join("outbox");
    let files = [data_dir.join("escape.json"), outbox.join("manifest"), outbox.join("cursors-a"), outbox.join("cursors-b")];
    let last = files.into_iter().filter_map(written).max();
    let since = last.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    Timestamp::default().plus(since)
}

/// `--log-level`, `info` unless said.
pub fn level(flags: &Flags) -> Result<tracing::Level, UsageError> {
    let text = flags.text("log-level").unwrap_or("info");
    logs::parse_level(text).map_err(|accepted| UsageError(format!("--log-level: found {text:?}; accepted are {accepted}")))
}

/// Everything said by flags, files and environment, checked before anything is opened.
struct Plan {
    config: NodeConfig,
    grace: Duration,
    command: Vec<String>,
    sources: Sources,
}

fn defaults(data_dir: &std::path::Path, resources: &mut Resources) {
    let property = |name: &str, value: String| PropertyValue { name: name.to_owned(), source: PropertySource::Literal(value) };
    resources.components.push(ComponentSpec {
        name: "statestore".to_owned(),
        type_name: "state.sqlite".to_owned(),
        version: "v1".to_owned(),
        ignore_errors: false,
        init_timeout: Duration::from_secs(5),
        properties: vec![property("connectionString", data_dir.join("state.db").display().to_string())],
        secret_store: None,
        scopes: Vec::new(),
        origin: "built in".to_owned(),
    });
    resources.listeners.push(ListenerSpec {
        origin: Origin::default(),
        name: "devices".to_owned(),
        protocol: ListenerProtocol::Mqtt,
        bind: DEFAULT_LISTENER.to_owned(),
        pubsub: "local".to_owned(),
        tls: None,
        users_file: None,
        limits: ListenerLimits::default(),
    });
}

/// Reads everything; problems are logged, all of them. `None` when one of them keeps the node from starting.
fn plan(flags: &Flags, flavour: Flavour, app_id: &str, log_level: Level) -> Option<Plan> {
    let environment = |name: &str| std::env::var(name).ok();
    let namespace = environment("NAMESPACE").filter(|n| !n.is_empty());
    let mut folders = flags.list("resources-path");
    folders.extend(flags.list("components-path"));
    let fatal = std::cell::Cell::new(false);
    let say = |error: &dyn std::fmt::Display| {
        fatal.set(true);
        tracing::error!("Fatal error from runtime: {error}");
    };
    let mut resources = load(&folders, app_id, namespace.as_deref(), &environment).unwrap_or_else(|error| {
        say(&error);
        Resources::default()
    });
    let configuration = load_configuration(&flags.list("config"), &environment).unwrap_or_else(|error| {
        say(&error);
        ConfigurationSpec::default()
    });
    for problem in std::mem::take(&mut resources.problems) {
        match problem.severity {
            Severity::Error => {
                fatal.set(true);
                tracing::error!("{problem}");
            }
            Severity::Warning | Severity::Unreadable => tracing::warn!("{problem}"),
        }
    }
    for error in resources.subscriptions.iter().filter_map(|s| serve_api::check_routes(s).err()) {
        say(&error);
    }
    let data_dir = data_dir(flags, app_id);
    if flavour == Flavour::Newcomer && folders.is_empty() {
        defaults(&data_dir, &mut resources);
        if std::net::TcpListener::bind(DEFAULT_LISTENER).is_err_and(|e| e.kind() == std::io::ErrorKind::AddrInUse) {
            let holder = doctor::holder(1883);
            say(&format!(
                "{DEFAULT_LISTENER} is taken by {holder}: stop that, or have `selvedge init --listen 127.0.0.1:1884` write a folder for --resources-path"
            ));
        }
        if let Err(error) = std::fs::DirBuilder::new().recursive(true).mode(0o750).create(&data_dir) {
            say(&format!("the data directory {} cannot be made: {error}; choose another with --data-dir", data_dir.display()));
        }
    }
    for flag in flags.not_served() {
        tracing::warn!("--{flag} is not served yet and has no effect");
    }
    if fatal.get() {
        return None;
    }
    if let Some(level) = resources.log_level.take() {
        log_level.now.set(level);
    }
    let sources = Sources { folders, log_level, app_id: app_id.to_owned(), namespace: namespace.clone() };
    let config = NodeConfig { app_id: app_id.to_owned(), namespace, data_dir, resources, configuration, environment: std::env::vars().collect() };
    Some(Plan { config, grace: flags.grace(), command: flags.command.clone(), sources })
}

/// Runs the node until it is told to stop.
pub fn run(flags: &Flags, flavour: Flavour) -> Result<ExitCode, UsageError> {
    let app_id = match (flags.text("app-id"), flavour) {
        (Some(id), _) if !id.contains('.') => id.to_owned(),
        (Some(id), _) => return Err(UsageError(format!("--app-id: found {id:?}; accepted is an id without dots"))),
        (None, Flavour::Newcomer) => "selvedge".to_owned(),
        (None, Flavour::Sidecar) => {
            return Err(UsageError("--app-id is required; `selvedge run` needs none, `selvedge help` shows all there is".to_owned()));
        }
    };
    if let Some(mode) = flags.text("mode").filter(|m| *m != "standalone") {
        return Err(UsageError(format!("--mode: found {mode:?}; accepted is standalone")));
    }
    let threads = flags.threads()?;
    let doors = Doors::from_flags(flags)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::with_floor(last_known_time(&data_dir(flags, &app_id))));
    let (first_level, json) = (level(flags)?, flags.switch("log-as-json", false));
    let log_level = LogLevel::new(first_level);
    // Who asks for JSON reads lines.
    let stream = std::env::var("JOURNAL_STREAM").ok().filter(|_| !json);
    logs::start(
        logs::LogOptions {
            level: log_level.clone(),
            json,
            app_id: app_id.clone(),
            instance: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            clock: clock.clone(),
        },
        Journal::behind(std::io::stdout(), stream.as_deref(), Path::new(journal::SOCKET)),
        std::io::stdout(),
    );
    tracing::info!("Starting Dapr Runtime -- version {} -- commit unknown", env!("CARGO_PKG_VERSION"));
    let Some(plan) = plan(flags, flavour, &app_id, Level { now: log_level, at_start: first_level }) else { return Ok(ExitCode::FAILURE) };
    let inherited = match activation::take() {
        Ok(inherited) => inherited,
        Err(error) => {
            tracing::error!("Fatal error from runtime: {error}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let mut builder = if threads == 1 { tokio::runtime::Builder::new_current_thread() } else { tokio::runtime::Builder::new_multi_thread() };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    match builder.enable_all().build() {
        Ok(runtime) => Ok(runtime.block_on(serve(plan, doors, clock, inherited))),
        Err(error) => {
            tracing::error!("Fatal error from runtime: the event loop cannot be started: {error}");
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn serve(plan: Plan, doors: Doors, clock: Arc<dyn Clock>, inherited: InheritedSockets) -> ExitCode {
    let started = clock.monotonic();
    // From here on SIGHUP does not end the process.
    let Ok(mut hang_up) = signal(SignalKind::hangup()) else {
        tracing::error!("Fatal error from runtime: signals cannot be handled");
        return ExitCode::FAILURE;
    };
    let metrics = Metrics::new();
    let sockets = match doors.bind(&clock, &inherited).await {
        Ok(sockets) => sockets,
        Err(error) => {
            tracing::error!("Fatal error from runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let node = match Node::build(plan.config, components::host(clock.clone(), metrics.clone(), inherited.clone())).await {
        Ok(node) => node,
        Err(error) => {
            tracing::error!("Fatal error from runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    for socket in inherited.left() {
        tracing::warn!("the inherited socket {socket} is used by nothing; a Listener takes it with bind: systemd:NAME");
    }
    let mut background = tokio::task::JoinSet::new();
    let reloader = Reloader::new(plan.sources, node.reload());
    if node.hub().is_some() {
        match control::bind(&node.config().data_dir) {
            Ok(listener) => {
                background.spawn(control::serve(listener, node.status(), reloader.clone()));
            }
            Err(error) => tracing::warn!(error = %error, "no control socket; `selvedge status` will not find this node"),
        }
    }
    let mut child = match start_command(&plan.command) {
        Ok(child) => child,
        Err(error) => {
            tracing::error!("Fatal error from runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut api = serve_api::start(&node, sockets, doors.http_options(&node), &metrics, doors.skip);
    let mut asked = api.shutdown.clone();
    let app = match doors.app() {
        Ok(app) => app,
        Err(error) => {
            tracing::error!("Fatal error from runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(app) = &app {
        // Health says "not ready" meanwhile, as daprd's does; a signal ends the wait.
        tokio::select! {
            () = app.wait_for_port() => {}
            cause = told_to_stop() => {
                tracing::info!("{cause}; shutting down");
                drop(node);
                return ExitCode::SUCCESS;
            }
        }
    }
    tracing::info!("dapr initialized. Status: Running. Init Elapsed {}ms", clock.monotonic().since(started).as_millis());
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    reloader.announce();
    if let Some(within) = sd_notify::watchdog_enabled() {
        background.spawn(feed_watchdog(within));
    }
    if selvedge_heap::IS_KEPT {
        background.spawn(give_back_memory());
    }
    let (stopping, mut stopped) = watch::channel(false);
    let stop: Fut<'static, ()> = Box::pin(async move {
        let _ = stopped.wait_for(|s| *s).await;
    });
    let grace = plan.grace;
    let mut running = tokio::spawn(node.run(stop, grace));
    if let Some(app) = app {
        // As daprd: ready when the subscriptions stand. A broker that is away must not hold that up, so the wait is short.
        let _ = tokio::time::timeout(ATTACH, api.serve_app(app, doors.health.clone())).await;
    }
    api.ready();
    background.spawn(async move {
        while hang_up.recv().await.is_some() {
            reloader.reload(None).await;
        }
    });
    let cause = tokio::select! {
        asked = asked.wait_for(Option::is_some) => {
            if asked.is_ok_and(|a| *a == Some(true)) {
                tracing::info!("Force shutdown requested, exiting immediately without graceful shutdown");
                tokio::time::sleep(Duration::from_millis(100)).await;
                return ExitCode::FAILURE;
            }
            "Shutdown requested via API"
        }
        cause = told_to_stop() => cause,
        cause = ended(&mut child) => cause,
    };
    tracing::info!("{cause}; shutting down");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stopping.send_replace(true);
    if let Some(mut child) = child {
        let _ = child.kill().await;
    }
    // Calls that run may end; new ones find the ports closed.
    let api_end = api.stop(grace);
    let ended = async {
        api_end.await;
        (&mut running).await
    };
    tokio::select! {
        late = ended => match late {
            Ok(late) if late.is_empty() => {
                tracing::info!("Daprd shutdown gracefully");
                ExitCode::SUCCESS
            }
            Ok(late) => {
                tracing::error!(late = late.join(", "), "Graceful shutdown timeout exceeded, forcing shutdown");
                ExitCode::FAILURE
            }
            Err(error) => {
                tracing::error!(error = %error, "the node ended by a defect");
                ExitCode::FAILURE
            }
        },
        _ = told_to_stop() => {
            tracing::error!("second signal: not waiting any longer");
            ExitCode::FAILURE
        }
    }
}

/// Tells systemd's watchdog that the event loop goes on, three times within its time: by the loop's own progress, whatever links and
/// disks do. A loop that is stuck is thus started anew.
async fn feed_watchdog(within: Duration) {
    loop {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::time::sleep(within / 3).await;
    }
}

/// What a burst has freed goes back to the system within seconds.
async fn give_back_memory() {
    loop {
        tokio::time::sleep(GIVE_BACK).await;
        selvedge_heap::give_back();
    }
}

/// Resolves at SIGTERM or SIGINT with the words for the log.
async fn told_to_stop() -> &'static str {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        // Without handlers the default action ends the process; the store recovers from that.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "received SIGTERM",
        _ = interrupt.recv() => "received SIGINT",
    }
}

fn start_command(command: &[String]) -> Result<Option<tokio::process::Child>, String> {
    let Some((program, arguments)) = command.split_first() else { return Ok(None) };
    tokio::process::Command::new(program)
        .args(arguments)
        .env_remove("LISTEN_FDNAMES")
        .kill_on_drop(true)
        .spawn()
        .map(Some)
        .map_err(|e| format!("cannot start {program:?}: {e}"))
}

async fn ended(child: &mut Option<tokio::process::Child>) -> &'static str {
    match child {
        Some(child) => {
            let _ = child.wait().await;
            "the program beside the node has ended"
        }
        None => std::future::pending().await,
    }
}
