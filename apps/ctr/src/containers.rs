//! `ctr containers`: the commands that are one call or a few.

use anyhow::{Context, anyhow};
use containerd_client::{Client, INIT, api};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::args::{Containers, EventOptions, Exec, Kill, Start, TableOptions, Update};
use crate::attach;
use crate::checkpoints;
use crate::daemon::{change, change_with};
use crate::events;
use crate::failure::Failure;
use crate::out;
use crate::signals::Signals;
use crate::stats;
use crate::table;
use crate::user::{self, Wanted};

pub(crate) async fn execute(client: &Client, command: Containers) -> Result<ExitCode, Failure> {
    match command {
        Containers::List(options) => list(client, options).await,
        Containers::Start(start) => self::start(client, start).await,
        Containers::Exec(exec) => self::exec(client, exec).await,
        Containers::Kill(kill) => self::kill(client, kill).await,
        Containers::Pause { id } => freeze(client, &id, client.pause(&id)).await,
        Containers::Resume { id } => freeze(client, &id, client.resume(&id)).await,
        Containers::Watch { id, options } => {
            events::execute(client, id, EventOptions { timestamp: None, stored_only: false, options }).await
        }
        Containers::Stats(options) => stats::execute(client, options).await,
        Containers::Update(update) => self::update(client, update).await,
        Containers::State { id } => state(client, id).await,
    }
}

pub(crate) async fn state(client: &Client, id: Option<String>) -> Result<ExitCode, Failure> {
    let state = match id {
        Some(id) => client.state_of(&id).await?,
        None => client.state().await?,
    };
    out::write_json(&state)
}

pub(crate) async fn version(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let version = client.version().await?;
    if json {
        return out::write_json(&version);
    }
    let api::GetServerVersionResponse { major, minor, patch, revision } = version;
    out::write(format!("containerd {major}.{minor}.{patch} ({})\n", sys::shown::escape(&revision)))?;
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client, options: TableOptions) -> Result<ExitCode, Failure> {
    let state = client.state().await?;
    if options.json {
        return out::write_json(&state.containers);
    }
    let row = |container: &api::Container| {
        let processes: Vec<&str> = container.processes.iter().map(|process| process.pid.as_str()).collect();
        vec![container.id.clone(), container.bundle_path.clone(), container.status.clone(), processes.join(",")]
    };
    let rows: Vec<Vec<String>> = state.containers.iter().map(row).collect();
    out::write(table::text(&["ID", "PATH", "STATUS", "PROCESSES"], &rows))?;
    Ok(ExitCode::SUCCESS)
}

async fn start(client: &Client, start: Start) -> Result<ExitCode, Failure> {
    // The daemon has another working directory.
    let bundle = std::path::absolute(&start.bundle).with_context(|| format!("bundle {:?}", start.bundle))?;
    let request = api::CreateContainerRequest {
        id: start.id,
        bundle_path: bundle.to_str().context("the bundle's path is not UTF-8")?.to_string(),
        labels: start.label,
        checkpoint: start.checkpoint.unwrap_or_default(),
        checkpoint_dir: checkpoints::absolute(start.checkpoint_dir.as_deref())?.unwrap_or_default(),
        no_pivot_root: start.no_pivot,
        runtime: start.runtime.map(absolute_program).transpose()?.unwrap_or_default(),
        runtime_args: start.runtime_args,
        ..Default::default()
    };
    if start.attach {
        return attach::start(client, request).await;
    }
    let goes_on = format!("the daemon goes on with the start: `ctr containers state {}` shows it", request.id);
    change(client, &goes_on, client.create_container(request)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Makes a runtime's path absolute, from this program's working directory. The daemon looks for a bare name in its PATH.
fn absolute_program(program: String) -> Result<String, Failure> {
    if !program.contains('/') {
        return Ok(program);
    }
    let path = std::path::absolute(&program).with_context(|| format!("runtime {program:?}"))?;
    Ok(path.into_os_string().into_string().ok().context("the runtime's path is not UTF-8")?)
}

async fn exec(client: &Client, exec: Exec) -> Result<ExitCode, Failure> {
    let signals = Signals::take()?;
    let attach = exec.attach;
    let request = signals.end(|| "nothing was started".into(), exec_request(client, exec)).await?;
    if attach {
        return attach::exec(client, signals, request).await;
    }
    let goes_on = format!("the daemon goes on with the start: `ctr containers state {}` shows it", request.id);
    change_with(client, &signals, &goes_on, client.add_process(request)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the request for `exec`. What the command line leaves open is taken from the container's init process.
async fn exec_request(client: &Client, exec: Exec) -> Result<api::AddProcessRequest, Failure> {
    let container = container_of(client, &exec.id).await?;
    let init = init_of(&container).cloned().unwrap_or_default();
    let mut user = match &exec.user {
        Some(wanted) => resolve(client, wanted, &container, &init).await?,
        None => init.user.unwrap_or_default(),
    };
    user.uid = exec.uid.unwrap_or(user.uid);
    user.gid = exec.gid.unwrap_or(user.gid);
    // The daemon takes an empty environment for the container's. Variables of the command line are added to that.
    let mut env = Vec::new();
    if !exec.env.is_empty() {
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_string();
        let given: Vec<String> = exec.env.iter().map(|variable| name(variable)).collect();
        env = init.env;
        env.retain(|variable| !given.contains(&name(variable)));
        env.extend(exec.env);
    }
    Ok(api::AddProcessRequest {
        id: exec.id,
        pid: exec.pid,
        terminal: exec.tty,
        user: Some(user),
        args: exec.command,
        env,
        cwd: exec.cwd.unwrap_or(init.cwd),
        ..Default::default()
    })
}

/// The state of a container. Fails in the daemon's own words if there is none.
pub(crate) async fn container_of(client: &Client, id: &str) -> Result<api::Container, Failure> {
    let containers = client.state_of(id).await?.containers;
    let found = containers.into_iter().find(|container| container.id == id);
    Ok(found.with_context(|| format!("container {id} is gone"))?)
}

fn init_of(container: &api::Container) -> Option<&api::Process> {
    container.processes.iter().find(|process| process.pid == INIT)
}

/// Looks up the ids of a user and a group in the container's present files.
async fn resolve(
    client: &Client,
    wanted: &Wanted,
    container: &api::Container,
    init: &api::Process,
) -> Result<api::User, Failure> {
    if let Some(user) = wanted.numbers() {
        return Ok(user);
    }
    if !client.address().is_local() {
        return Err(anyhow!(
            "names of users need the container's files, which are on another machine: give numbers, as UID:GID"
        )
        .into());
    }
    let (pid, bundle) = (init.system_pid, PathBuf::from(&container.bundle_path));
    // In a thread, since a file system that the container has mounted there may hang: signals are watched for meanwhile.
    let files = tokio::task::spawn_blocking(move || {
        let root = match user::root_of(pid) {
            Ok(root) => root,
            // A member of the daemon's group that is not root may not look into a container.
            Err(e) if e.kind() == ErrorKind::PermissionDenied => user::root_of_bundle(&bundle)?,
            Err(e) => return Err(anyhow::Error::new(e).context("open the container's root directory")),
        };
        Ok(user::Files::of(&root))
    });
    let files = files.await.map_err(anyhow::Error::from)??;
    // If the container still has this process, its id has not been given to another process meanwhile.
    if init_of(&container_of(client, &container.id).await?).is_none_or(|now| now.system_pid != pid) {
        return Err(anyhow!("container {} has ended meanwhile", container.id).into());
    }
    Ok(wanted.resolve(&files)?)
}

async fn kill(client: &Client, kill: Kill) -> Result<ExitCode, Failure> {
    let goes_on = "the daemon may still send the signal";
    change(client, goes_on, client.signal(&kill.id, &kill.pid, kill.signal)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Makes a call that freezes or thaws a container.
async fn freeze(
    client: &Client,
    id: &str,
    call: impl Future<Output = Result<(), containerd_client::Error>>,
) -> Result<ExitCode, Failure> {
    let goes_on = format!("the daemon goes on: `ctr containers state {id}` shows the container's status");
    change(client, &goes_on, call).await?;
    Ok(ExitCode::SUCCESS)
}

async fn update(client: &Client, update: Update) -> Result<ExitCode, Failure> {
    let resources = api::UpdateResource {
        memory_limit: update.memory_limit.unwrap_or_default(),
        memory_reservation: update.memory_reservation.unwrap_or_default(),
        memory_swap: update.memory_swap.unwrap_or_default(),
        cpu_shares: update.cpu_shares.unwrap_or_default(),
        cpu_quota: update.cpu_quota.unwrap_or_default(),
        cpu_period: update.cpu_period.unwrap_or_default(),
        kernel_memory_limit: update.kernel_limit.unwrap_or_default(),
        kernel_tcp_memory_limit: update.kernel_tcp_limit.unwrap_or_default(),
        blkio_weight: update.blkio_weight.unwrap_or_default(),
        cpuset_cpus: update.cpuset_cpus.unwrap_or_default(),
        cpuset_mems: update.cpuset_mems.unwrap_or_default(),
        pids_limit: update.pids_limit.unwrap_or_default(),
        ..Default::default()
    };
    if resources == api::UpdateResource::default() {
        return Err(anyhow!("nothing to change: name a limit, such as --memory-limit 50M").into());
    }
    let goes_on = "the daemon goes on, and may still change the limits";
    change(client, goes_on, client.update(&update.id, resources)).await?;
    Ok(ExitCode::SUCCESS)
}
