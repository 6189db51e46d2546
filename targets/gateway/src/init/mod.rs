//! `selvedge init`: writes a commented folder for a gateway, finds out what it can, checks the result and says what comes next.

mod plan;
mod template;

use std::io::Write as _;
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use selvedge::component::{Finding, FindingLevel};
use selvedge_mqtt_listener::users::{hash_password, random_password};

use crate::flags::{Flags, UsageError};
use crate::say::say;
use crate::{check, doctor};
use plan::Plan;

/// Rounds for the hashes of passwords that are made here. They hold 128 random bits, which nobody guesses at any speed: rounds protect
/// passwords that people choose, and cost a small box the same time at each connect.
const ROUNDS: u32 = 10_000;

/// For `selvedge init --help`.
pub const HELP: &str = "\
selvedge init [FOLDER] [FLAGS]   writes FOLDER/resources/gateway.yaml (./selvedge unless said), checks it, says what comes next

  --upstream URL           the broker that messages go to: mqtt://HOST[:PORT] or mqtts://HOST[:PORT]
  --user NAME              the box's user there
  --password-file FILE     its password, the first line of FILE; - reads it from standard input
  --ca-file FILE           PEM of the authority of the broker's certificate; unless said, those of the system
  --prefix PREFIX          put before topics at the broker; the box's name unless said: sensors/attic goes up as PREFIX/sensors/attic
  --devices NAME,...       devices that get a password, which is shown this once
  --listen ADDRESS,...     where devices come in: ADDRESS:PORT (MQTT), coap://ADDRESS:PORT; unless said 0.0.0.0:1883 with passwords,
                           127.0.0.1:1883 without
  --app-id NAME            the box's name; the host's unless said
  --data-dir FOLDER        what the node keeps
  --force                  write over what is there
";

/// A file of the folder.
struct Output {
    path: PathBuf,
    text: String,
    /// Only its owner and the folder's group may read it.
    secret: bool,
}

/// Writes a file in one piece, or not at all.
fn write(output: &Output) -> std::io::Result<()> {
    let parent = output.path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)?;
    let temporary = output.path.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    let mode = if output.secret { 0o640 } else { 0o644 };
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    if output.secret {
        // Where the folder belongs to the service's group the service may read it; who may not give files away owns both.
        let _ = std::os::unix::fs::fchown(&file, None, Some(parent.metadata()?.gid()));
    }
    file.write_all(output.text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, &output.path)
}

/// Whether something stands there that somebody has written: what the package brought, untouched, is not that.
fn is_somebodys(output: &Output) -> bool {
    output.path.symlink_metadata().is_ok() && std::fs::read_to_string(&output.path).ok().as_deref() != Some(template::TEMPLATE)
}

/// Names of devices with the passwords that were made for them.
type Passwords<'a> = Vec<(&'a str, String)>;

/// The folder's files, and the passwords.
fn outputs(plan: &Plan) -> Result<(Vec<Output>, Passwords<'_>), UsageError> {
    let at = |name: &str| plan.dir.join(name);
    let mut outputs = vec![Output { path: at("resources/gateway.yaml"), text: template::gateway(plan, false), secret: false }];
    let no_random = |e: &dyn std::fmt::Display| UsageError(format!("the system gives no random numbers: {e}"));
    let (mut passwords, mut hashes) = (Vec::new(), Vec::new());
    for name in &plan.devices {
        let password = random_password().map_err(|e| no_random(&e))?;
        let rounds = NonZeroU32::new(ROUNDS).unwrap_or(NonZeroU32::MIN);
        hashes.push((name.as_str(), hash_password(password.as_bytes(), rounds).map_err(|e| no_random(&e))?));
        passwords.push((name.as_str(), password));
    }
    if !hashes.is_empty() {
        let text = template::users(hashes.iter().map(|(name, hash)| (*name, hash.as_str())));
        outputs.push(Output { path: at("users.yaml"), text, secret: true });
    }
    if let Some(url) = plan.broker.as_ref().and_then(|b| b.secret.as_ref()) {
        let text = format!("{:#}\n", serde_json::json!({ template::SECRET: url }));
        outputs.push(Output { path: at("secrets.json"), text, secret: true });
    }
    Ok((outputs, passwords))
}

/// Writes them all, last what names the others; exit code 1, and the reason on standard error, when one cannot be written.
fn write_all(outputs: &[Output]) -> Result<(), ExitCode> {
    outputs.iter().rev().try_for_each(|output| {
        write(output).map_err(|error| {
            eprintln!("selvedge: {} cannot be written: {error}; run this as who may write there, or give another folder", output.path.display());
            ExitCode::FAILURE
        })
    })
}

/// Writes the folder; exit code 1 when it cannot, or when something would be overwritten.
pub fn init(flags: &Flags) -> Result<ExitCode, UsageError> {
    let plan = plan::plan(flags)?;
    let (mut outputs, passwords) = outputs(&plan)?;
    let there: Vec<String> = outputs.iter().filter(|o| is_somebodys(o)).map(|o| o.path.display().to_string()).collect();
    if !there.is_empty() && !flags.switch("force", false) {
        eprintln!("selvedge: nothing is written: {} is there already; --force writes over it, or give another folder", there.join(", "));
        return Ok(ExitCode::FAILURE);
    }
    if let Err(code) = write_all(&outputs) {
        return Ok(code);
    }
    let folders = [plan.dir.join("resources")];
    if let Some(broker) = &plan.broker {
        eprintln!("trying {} ...", broker.url);
    }
    let mut found = doctor::doors(&folders, &plan.node, flags);
    // What the broker speaks is found out by trying.
    let mut mqtt3 = false;
    if fails(&found, ": mqtt") {
        outputs[0].text = template::gateway(&plan, true);
        if let Err(code) = write_all(&outputs[..1]) {
            return Ok(code);
        }
        let older = doctor::doors(&folders, &plan.node, flags);
        mqtt3 = !fails(&older, "");
        if mqtt3 {
            found = older;
        } else {
            outputs[0].text = template::gateway(&plan, false);
            if let Err(code) = write_all(&outputs[..1]) {
                return Ok(code);
            }
        }
    }
    for output in &outputs {
        say!("wrote {}{}", output.path.display(), if output.secret { " (for its owner and group alone)" } else { "" });
    }
    let sound = check::report(&folders, &plan.node, flags.load()?);
    say(&plan, mqtt3, &found, &passwords, flags);
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the way to the broker has a problem, at the stage whose name ends so.
fn fails(found: &[Finding], stage: &str) -> bool {
    found.iter().any(|f| f.level == FindingLevel::Problem && f.subject.starts_with("upstream ") && f.subject.ends_with(stage))
}

/// What was found, what is shown once, and what comes next.
fn say(plan: &Plan, mqtt3: bool, found: &[Finding], passwords: &[(&str, String)], flags: &Flags) {
    say!();
    for finding in found.iter().filter(|f| f.level >= FindingLevel::Warning) {
        say!("{finding}");
    }
    match &plan.broker {
        None => say!("no broker is named: nothing leaves the box. --upstream URL names one"),
        Some(_) if fails(found, "") => {
            if fails(found, ": tls") {
                say!("--ca-file FILE says which authority the broker's certificate leads to");
            }
            say!("the broker does not take the box yet: messages wait on the disk until it does");
        }
        Some(broker) => {
            let version = if mqtt3 { "MQTT 3.1.1" } else { "MQTT 5" };
            say!("{} takes the box ({version}). Up go sensors/# and alarm/#, under {1}; down comes {1}cmd/#", broker.url, plan.prefix);
        }
    }
    say!("devices come in at {} ({})", plan.listen, if plan.users { "with a password" } else { "without passwords" });
    if let Some((example, _)) = passwords.first() {
        say!("\npasswords, shown this once; each device writes below sensors/NAME and alarm/NAME, and reads below cmd/NAME:");
        for (name, password) in passwords {
            say!("  {name}  {password}");
        }
        let host = if plan.listen.ip().is_unspecified() { plan.node.clone() } else { plan.listen.ip().to_string() };
        say!("try one: mosquitto_pub -h {host} -p {} -q 1 -u {example} -P PASSWORD -t sensors/{example} -m 21.5", plan.listen.port());
    }
    say!("\nnext:");
    if plan::is_packages(&plan.dir) {
        say!("  sudo systemctl restart selvedge");
        return;
    }
    let data = flags.text("data-dir").map(|_| format!(" --data-dir {}", plan.data)).unwrap_or_default();
    // As the packages' service: Dapr's APIs ask for no password.
    let local = if cfg!(feature = "api") { " --dapr-listen-addresses 127.0.0.1" } else { "" };
    say!("  selvedge run --app-id {} --resources-path {}/resources{data}{local}", plan.node, plan.folder);
}
