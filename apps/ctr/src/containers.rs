//! The commands that are one call.

use anyhow::{Context, anyhow};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::args::{Containers, EventOptions, Exec, Kill, Start, TableOptions, Update};
use crate::attach;
use crate::checkpoints;
use crate::client::{Client, Target};
use crate::events;
use crate::failure::Failure;
use crate::out;
use crate::signals::Signals;
use crate::stats;
use crate::table;
use crate::user::{self, Wanted};

pub(crate) async fn execute(target: &Target, command: Containers) -> Result<ExitCode, Failure> {
    match command {
        Containers::List(options) => list(target, options).await,
        Containers::Start(start) => self::start(target, start).await,
        Containers::Exec(exec) => self::exec(target, exec).await,
        Containers::Kill(kill) => self::kill(target, kill).await,
        Containers::Pause { id } => set_status(target, id, "paused").await,
        Containers::Resume { id } => set_status(target, id, "running").await,
        Containers::Watch { id, options } => {
            events::execute(target, id, EventOptions { timestamp: None, stored_only: false, options }).await
        }
        Containers::Stats(options) => stats::execute(target, options).await,
        Containers::Update(update) => self::update(target, update).await,
        Containers::State { id } => state(target, id).await,
    }
}

pub(crate) async fn state(target: &Target, id: Option<String>) -> Result<ExitCode, Failure> {
    let request = api::StateRequest { id: id.unwrap_or_default() };
    out::write_json(&state_of(target, request).await?)
}

async fn state_of(target: &Target, request: api::StateRequest) -> Result<api::StateResponse, Failure> {
    target.ask(async |mut client| Ok(client.state(request.clone()).await?.into_inner())).await
}

pub(crate) async fn version(target: &Target, json: bool) -> Result<ExitCode, Failure> {
    let ask =
        async |mut client: Client| Ok(client.get_server_version(api::GetServerVersionRequest {}).await?.into_inner());
    let version = target.ask(ask).await?;
    if json {
        return out::write_json(&version);
    }
    let api::GetServerVersionResponse { major, minor, patch, revision } = version;
    out::write(format!("containerd {major}.{minor}.{patch} ({})\n", sys::shown::escape(&revision)))?;
    Ok(ExitCode::SUCCESS)
}

async fn list(target: &Target, options: TableOptions) -> Result<ExitCode, Failure> {
    let state = state_of(target, api::StateRequest::default()).await?;
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

async fn start(target: &Target, start: Start) -> Result<ExitCode, Failure> {
    // The daemon's working directory is another one.
    let bundle = std::path::absolute(&start.bundle).with_context(|| format!("bundle {:?}", start.bundle))?;
    let runtime_args = start.runtime_args;
    let request = api::CreateContainerRequest {
        id: start.id,
        bundle_path: bundle.to_str().context("the bundle's path is not UTF-8")?.to_string(),
        labels: start.label,
        checkpoint: start.checkpoint.unwrap_or_default(),
        checkpoint_dir: checkpoints::absolute(start.checkpoint_dir.as_deref())?,
        no_pivot_root: start.no_pivot,
        runtime: start.runtime.map(absolute_program).transpose()?.unwrap_or_default(),
        runtime_args,
        ..Default::default()
    };
    if start.attach {
        return attach::start(target, request).await;
    }
    let goes_on = format!("the daemon goes on with the start: `ctr containers state {}` tells", request.id);
    target.change(&goes_on, async |mut client| Ok(client.create_container(request).await.map(drop)?)).await?;
    Ok(ExitCode::SUCCESS)
}

/// A program as the daemon finds it: a name is looked for in its PATH, a path leads from this program's directory.
fn absolute_program(program: String) -> Result<String, Failure> {
    if !program.contains('/') {
        return Ok(program);
    }
    let path = std::path::absolute(&program).with_context(|| format!("runtime {program:?}"))?;
    Ok(path.into_os_string().into_string().ok().context("the runtime's path is not UTF-8")?)
}

async fn exec(target: &Target, exec: Exec) -> Result<ExitCode, Failure> {
    let signals = Signals::take()?;
    let attach = exec.attach;
    let request = signals.end(|| "nothing was started".into(), exec_request(target, exec)).await?;
    if attach {
        return attach::exec(target, signals, request).await;
    }
    let goes_on = format!("the daemon goes on with the start: `ctr containers state {}` tells", request.id);
    let call = async |mut client: Client| Ok(client.add_process(request).await.map(drop)?);
    target.change_with(&signals, &goes_on, call).await?;
    Ok(ExitCode::SUCCESS)
}

/// What is to be run, with what the command line leaves open taken from the container's first process.
async fn exec_request(target: &Target, exec: Exec) -> Result<api::AddProcessRequest, Failure> {
    let container = container_of(target, &exec.id).await?;
    let init = init_of(&container).cloned().unwrap_or_default();
    let mut user = match &exec.user {
        Some(wanted) => resolve(target, wanted, &container, &init).await?,
        None => init.user.unwrap_or_default(),
    };
    user.uid = exec.uid.unwrap_or(user.uid);
    user.gid = exec.gid.unwrap_or(user.gid);
    // An empty environment stands for the container's, which what is given is added to.
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

/// The container, or the daemon's own words that there is none.
pub(crate) async fn container_of(target: &Target, id: &str) -> Result<api::Container, Failure> {
    let containers = state_of(target, api::StateRequest { id: id.into() }).await?.containers;
    let found = containers.into_iter().find(|container| container.id == id);
    Ok(found.with_context(|| format!("container {id} is gone"))?)
}

fn init_of(container: &api::Container) -> Option<&api::Process> {
    container.processes.iter().find(|process| process.pid == "init")
}

/// The numbers of a user's and a group's name, by the files that the container has now.
async fn resolve(
    target: &Target,
    wanted: &Wanted,
    container: &api::Container,
    init: &api::Process,
) -> Result<api::User, Failure> {
    if let Some(user) = wanted.numbers() {
        return Ok(user);
    }
    if !target.is_here() {
        return Err(anyhow!(
            "names of users need the container's files, which are on another machine: give numbers, as UID:GID"
        )
        .into());
    }
    let (pid, bundle) = (init.system_pid, PathBuf::from(&container.bundle_path));
    // What the container mounts there may be slow, and signals are watched for meanwhile.
    let files = tokio::task::spawn_blocking(move || {
        let root = match user::root_of(pid) {
            Ok(root) => root,
            // Not every member of the daemon's group may look into a container.
            Err(e) if e.kind() == ErrorKind::PermissionDenied => user::root_of_bundle(&bundle)?,
            Err(e) => return Err(anyhow::Error::new(e).context("open the container's root directory")),
        };
        Ok(user::Files::of(&root))
    });
    let files = files.await.map_err(anyhow::Error::from)??;
    // The number was that of the container's process all the time, and of no later process.
    if init_of(&container_of(target, &container.id).await?).is_none_or(|now| now.system_pid != pid) {
        return Err(anyhow!("container {} has ended meanwhile", container.id).into());
    }
    Ok(wanted.resolve(&files)?)
}

async fn kill(target: &Target, kill: Kill) -> Result<ExitCode, Failure> {
    let request = api::SignalRequest { id: kill.id, pid: kill.pid, signal: kill.signal };
    let goes_on = "the daemon may still send the signal";
    target.change(goes_on, async |mut client| Ok(client.signal(request).await.map(drop)?)).await?;
    Ok(ExitCode::SUCCESS)
}

async fn set_status(target: &Target, id: String, status: &str) -> Result<ExitCode, Failure> {
    let goes_on = format!("the daemon goes on: `ctr containers state {id}` tells the container's status");
    let request = api::UpdateContainerRequest { id, status: status.into(), ..Default::default() };
    target.change(&goes_on, async |mut client| Ok(client.update_container(request).await.map(drop)?)).await?;
    Ok(ExitCode::SUCCESS)
}

async fn update(target: &Target, update: Update) -> Result<ExitCode, Failure> {
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
        return Err(anyhow::anyhow!("nothing to change: name a limit, such as --memory-limit 50M").into());
    }
    let request = api::UpdateContainerRequest { id: update.id, resources: Some(resources), ..Default::default() };
    let goes_on = "the daemon goes on, and may still change the limits";
    target.change(goes_on, async |mut client| Ok(client.update_container(request).await.map(drop)?)).await?;
    Ok(ExitCode::SUCCESS)
}
