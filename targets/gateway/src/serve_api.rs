//! The API's sockets and servers: bound before anything is built, served once the node is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use selvedge::api::grpc::{self, GrpcOptions};
use selvedge::api::http::{self, HttpOptions, Lifecycle};
use selvedge::app::{AppAddress, AppChannel, AppError, AppProtocol, HealthCheck};
pub use selvedge::block::check_routes;
use selvedge::block::{Blocks, SkipInit};
use selvedge::component::InheritedSockets;
use selvedge::node::Node;
use selvedge::telemetry::Metrics;
use selvedge::time::Clock;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::doctor;
use crate::flags::{Flags, UsageError};

/// How long a port that is taken is tried again (daprd's time).
const BIND_RETRY: Duration = Duration::from_secs(10);

/// What the flags say of the API.
pub struct Doors {
    addresses: Vec<IpAddr>,
    http: Option<u16>,
    grpc: Option<u16>,
    metrics: Option<(IpAddr, u16)>,
    max_body_bytes: u64,
    allowed_origins: Vec<String>,
    api_logging: bool,
    app: Option<AppAddress>,
    /// How the application's health is asked for.
    pub health: Option<HealthCheck>,
    /// `--disable-init-endpoints`.
    pub skip: SkipInit,
}

/// Sockets that are bound.
pub struct Sockets {
    http: Vec<TcpListener>,
    grpc: Vec<TcpListener>,
    metrics: Vec<TcpListener>,
}

/// Servers that run.
pub struct Api {
    ready: watch::Sender<bool>,
    /// Set when a caller asks for shutdown.
    pub shutdown: watch::Receiver<Option<bool>>,
    stop: watch::Sender<bool>,
    servers: JoinSet<()>,
    blocks: Blocks,
    _metrics: JoinSet<()>,
}

fn address(text: &str, flag: &str) -> Result<IpAddr, UsageError> {
    let plain = text.trim().trim_start_matches('[').trim_end_matches(']');
    let plain = if plain == "localhost" { "127.0.0.1" } else { plain };
    plain.parse().map_err(|_| UsageError(format!("--{flag}: found {text:?}; accepted is an IP address")))
}

/// What the application is not to be asked.
fn skipped(flags: &Flags) -> Result<SkipInit, UsageError> {
    let mut skip = SkipInit::default();
    for name in flags.text("disable-init-endpoints").unwrap_or_default().split(',').filter(|n| !n.is_empty()) {
        match name.trim() {
            "subscribe" => skip.subscribe = true,
            "config" => skip.config = true,
            other => return Err(UsageError(format!("--disable-init-endpoints: found {other:?}; accepted are config and subscribe"))),
        }
    }
    Ok(skip)
}

/// How the application's health is asked for, if it is.
fn health_check(flags: &Flags) -> Result<Option<HealthCheck>, UsageError> {
    if !flags.switch("enable-app-health-check", false) {
        return Ok(None);
    }
    let interval = Duration::from_secs(flags.positive("app-health-probe-interval", 5));
    let timeout = Duration::from_millis(flags.positive("app-health-probe-timeout", 500));
    if timeout > interval {
        let (t, i) = (timeout.as_millis(), interval.as_secs());
        return Err(UsageError(format!(
            "--app-health-probe-timeout: found {t} ms; accepted is at most the interval of {i} s (--app-health-probe-interval)"
        )));
    }
    let threshold = u32::try_from(flags.positive("app-health-threshold", 3)).unwrap_or(u32::MAX);
    Ok(Some(HealthCheck { path: flags.text("app-health-check-path").unwrap_or("/healthz").to_owned(), interval, timeout, threshold }))
}

/// The application, if there is one.
fn app_address(flags: &Flags) -> Result<Option<AppAddress>, UsageError> {
    let protocol = match flags.text("app-protocol").unwrap_or("http").to_ascii_lowercase().as_str() {
        "http" => AppProtocol::Http,
        "h2c" => AppProtocol::H2c,
        "grpc" => AppProtocol::Grpc,
        tls @ ("https" | "grpcs") => return Err(UsageError(format!("--app-protocol: {tls} is not served yet; accepted are http, h2c and grpc"))),
        other => return Err(UsageError(format!("--app-protocol: found {other:?}; accepted are http, h2c and grpc"))),
    };
    let Some(port) = flags.port("app-port", None)? else { return Ok(None) };
    Ok(Some(AppAddress {
        host: flags.text("app-channel-address").unwrap_or("127.0.0.1").to_owned(),
        port,
        protocol,
        max_concurrency: flags.text("app-max-concurrency").and_then(|n| n.parse::<usize>().ok()).filter(|n| *n > 0),
        token: std::env::var("APP_API_TOKEN").ok().filter(|t| !t.is_empty()),
    }))
}

impl Doors {
    /// Reads the flags.
    pub fn from_flags(flags: &Flags) -> Result<Self, UsageError> {
        let listen = flags.text("dapr-listen-addresses").unwrap_or_default();
        let mut addresses =
            listen.split(',').filter(|a| !a.trim().is_empty()).map(|a| address(a, "dapr-listen-addresses")).collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            addresses.push(IpAddr::from([0, 0, 0, 0]));
        }
        let metrics_address =
            flags.text("metrics-listen-address").map_or(Ok(IpAddr::from([0, 0, 0, 0])), |a| address(a, "metrics-listen-address"))?;
        let metrics = if flags.switch("enable-metrics", true) { flags.port("metrics-port", Some(9090))?.map(|p| (metrics_address, p)) } else { None };
        Ok(Self {
            addresses,
            http: flags.port("dapr-http-port", Some(3500))?,
            grpc: flags.port("dapr-grpc-port", Some(50_001))?,
            metrics,
            max_body_bytes: flags.size("max-body-size", 4 << 20)?,
            allowed_origins: flags
                .text("allowed-origins")
                .unwrap_or_default()
                .split(',')
                .map(str::trim)
                .filter(|o| !o.is_empty())
                .map(str::to_owned)
                .collect(),
            api_logging: flags.switch("enable-api-logging", false),
            app: app_address(flags)?,
            health: health_check(flags)?,
            skip: skipped(flags)?,
        })
    }

    /// Takes the inherited sockets `http`, `grpc` and `metrics`; binds what was not handed over. An address that cannot be bound is
    /// left out as long as another one can.
    pub async fn bind(&self, clock: &Arc<dyn Clock>, inherited: &InheritedSockets) -> Result<Sockets, String> {
        let mut http = inherited.tcp("http")?;
        if http.is_empty() {
            http = self.bind_api(self.http, "HTTP", "--dapr-http-port", clock).await?;
        }
        let mut grpc = inherited.tcp("grpc")?;
        if grpc.is_empty() {
            grpc = self.bind_api(self.grpc, "gRPC", "--dapr-grpc-port", clock).await?;
        }
        let handed = inherited.tcp("metrics")?;
        let metrics = match self.metrics {
            _ if !handed.is_empty() => handed,
            None => Vec::new(),
            Some((ip, port)) => match bind(ip, port, clock).await {
                Ok(listener) => vec![listener],
                Err(error) => {
                    return Err(format!(
                        "metrics cannot be served on {ip}:{port}: {}; choose another port with --metrics-port, or --enable-metrics=false",
                        why(&error, port)
                    ));
                }
            },
        };
        Ok(Sockets { http, grpc, metrics })
    }

    async fn bind_api(&self, port: Option<u16>, name: &str, flag: &str, clock: &Arc<dyn Clock>) -> Result<Vec<TcpListener>, String> {
        let Some(port) = port else { return Ok(Vec::new()) };
        let mut bound = Vec::new();
        let mut refused = String::new();
        for ip in &self.addresses {
            match bind(*ip, port, clock).await {
                Ok(listener) => bound.push(listener),
                Err(error) => {
                    refused = format!("the {name} API cannot listen on {ip}:{port}: {}; choose another port with {flag}", why(&error, port));
                    tracing::error!("{refused}");
                }
            }
        }
        if bound.is_empty() { Err(refused) } else { Ok(bound) }
    }

    /// Addresses that it wants to listen on: what for, the flag that chooses, the address.
    pub fn addresses(&self) -> Vec<(&'static str, &'static str, SocketAddr)> {
        let of = |what, flag, port: Option<u16>| self.addresses.iter().filter_map(move |ip| Some((what, flag, SocketAddr::new(*ip, port?))));
        let http = of("HTTP API", "--dapr-http-port", self.http);
        let grpc = of("gRPC API", "--dapr-grpc-port", self.grpc);
        http.chain(grpc).chain(self.metrics.map(|(ip, port)| ("metrics", "--metrics-port", SocketAddr::new(ip, port)))).collect()
    }

    /// The channel to the application.
    pub fn app(&self) -> Result<Option<AppChannel>, AppError> {
        self.app.clone().map(AppChannel::new).transpose()
    }

    /// What the HTTP server is told.
    pub fn http_options(&self, node: &Node) -> HttpOptions {
        let configuration = &node.config().configuration;
        HttpOptions {
            max_body_bytes: self.max_body_bytes,
            api_token: std::env::var("DAPR_API_TOKEN").ok().filter(|t| !t.is_empty()),
            allowed_origins: self.allowed_origins.clone(),
            api_logging: self.api_logging || configuration.api_logging == Some(true),
            record_error_codes: configuration.record_error_codes,
        }
    }
}

/// What the system said, or who has the port.
fn why(error: &std::io::Error, port: u16) -> String {
    if error.kind() == std::io::ErrorKind::AddrInUse { format!("the port is taken by {}", doctor::holder(port)) } else { error.to_string() }
}

async fn bind(ip: IpAddr, port: u16, clock: &Arc<dyn Clock>) -> std::io::Result<TcpListener> {
    let begun = clock.monotonic();
    let mut said = false;
    loop {
        match TcpListener::bind((ip, port)).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && clock.monotonic().since(begun) < BIND_RETRY => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!("{ip}:{port} is taken by {}; trying for {} s", doctor::holder(port), BIND_RETRY.as_secs());
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            other => return other,
        }
    }
}

/// Starts the servers; health says "not ready" until [`Api::ready`].
pub fn start(node: &Node, sockets: Sockets, options: HttpOptions, metrics: &Metrics, skip: SkipInit) -> Api {
    let blocks = Blocks::new(node, env!("CARGO_PKG_VERSION"), skip);
    let (ready, is_ready) = watch::channel(false);
    let (ask, shutdown) = watch::channel(None);
    let (stop, mut stopped) = watch::channel(false);
    let mut servers = JoinSet::new();
    let lifecycle = Lifecycle { ready: is_ready, shutdown: ask };
    let registry = metrics.clone();
    let served = blocks.clone();
    let grpc_options = GrpcOptions { max_message_bytes: options.max_body_bytes, api_token: options.api_token.clone() };
    servers.spawn(grpc::serve(blocks.clone(), sockets.grpc, grpc_options, lifecycle.clone(), stopped.clone()));
    servers.spawn(async move {
        let stop = Box::pin(async move {
            let _ = stopped.wait_for(|s| *s).await;
        });
        http::serve(served, sockets.http, options, lifecycle, &registry, stop).await;
    });
    let (transactions, mut ended) = (blocks.clone(), stop.subscribe());
    servers.spawn(async move {
        let stop = async move {
            let _ = ended.wait_for(|s| *s).await;
        };
        transactions.serve_transactions(stop).await;
    });
    let mut metrics_server = JoinSet::new();
    for listener in sockets.metrics {
        metrics_server.spawn(http::serve_metrics(listener, metrics.clone()));
    }
    Api { ready, shutdown, stop, servers, blocks, _metrics: metrics_server }
}

impl Api {
    /// From now on health says "ready".
    pub fn ready(&self) {
        self.ready.send_replace(true);
    }

    /// Delivers to the application what it subscribes to, while it is well and until the API stops. The result resolves when its
    /// subscriptions stand, or wait for its health.
    pub fn serve_app(&mut self, app: AppChannel, health: Option<HealthCheck>) -> oneshot::Receiver<()> {
        let (stands, attached) = oneshot::channel();
        let (blocks, mut stopped) = (self.blocks.clone(), self.stop.subscribe());
        // Well from the start where nobody asks.
        let (well, is_well) = watch::channel(health.is_none());
        if let Some(health) = health {
            let (asking, mut ended) = (app.clone().watch_health(health, well), self.stop.subscribe());
            self.servers.spawn(async move {
                tokio::select! {
                    () = asking => {}
                    _ = ended.wait_for(|s| *s) => {}
                }
            });
        }
        self.servers.spawn(async move {
            let stop = Box::pin(async move {
                let _ = stopped.wait_for(|s| *s).await;
            });
            blocks.serve_app(app, is_well, stands, stop).await;
        });
        attached
    }

    /// Closes the ports and waits for calls that run, at most the grace period.
    pub async fn stop(mut self, grace: Duration) {
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(grace, async { while self.servers.join_next().await.is_some() {} }).await;
    }
}
