//! The commands that are one call.

use anyhow::Context;
use std::io::Write;
use std::process::ExitCode;

use crate::args::{Containers, EventOptions, Exec, Kill, Start, TableOptions, Update};
use crate::attach;
use crate::checkpoints;
use crate::client::Target;
use crate::events;
use crate::failure::Failure;
use crate::stats;
use crate::table;

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
        Containers::State => state(target).await,
    }
}

pub(crate) async fn state(target: &Target) -> Result<ExitCode, Failure> {
    let state = target.connect().await?.state(api::StateRequest::default()).await?.into_inner();
    print_json(&state)
}

pub(crate) async fn version(target: &Target, json: bool) -> Result<ExitCode, Failure> {
    let request = api::GetServerVersionRequest {};
    let version = target.connect().await?.get_server_version(request).await?.into_inner();
    if json {
        return print_json(&version);
    }
    let api::GetServerVersionResponse { major, minor, patch, revision } = version;
    writeln!(std::io::stdout(), "containerd {major}.{minor}.{patch} ({revision})")?;
    Ok(ExitCode::SUCCESS)
}

async fn list(target: &Target, options: TableOptions) -> Result<ExitCode, Failure> {
    let state = target.connect().await?.state(api::StateRequest::default()).await?.into_inner();
    if options.json {
        return print_json(&state.containers);
    }
    let row = |container: &api::Container| {
        let processes: Vec<&str> = container.processes.iter().map(|process| process.pid.as_str()).collect();
        vec![container.id.clone(), container.bundle_path.clone(), container.status.clone(), processes.join(",")]
    };
    let rows: Vec<Vec<String>> = state.containers.iter().map(row).collect();
    table::write(&mut std::io::stdout().lock(), &["ID", "PATH", "STATUS", "PROCESSES"], &rows)?;
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
        runtime: start.runtime.unwrap_or_default(),
        runtime_args,
        ..Default::default()
    };
    if start.attach {
        return attach::start(target, request).await;
    }
    target.connect().await?.create_container(request).await?;
    Ok(ExitCode::SUCCESS)
}

async fn exec(target: &Target, exec: Exec) -> Result<ExitCode, Failure> {
    let mut client = target.connect().await?;
    let mut env = Vec::new();
    if !exec.env.is_empty() {
        // What is given goes beside the container's environment, which an empty one would stand for.
        let request = api::StateRequest { id: exec.id.clone() };
        let containers = client.state(request).await?.into_inner().containers;
        let init = containers.into_iter().flat_map(|c| c.processes).find(|process| process.pid == "init");
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_string();
        let given: Vec<String> = exec.env.iter().map(|variable| name(variable)).collect();
        env = init.map(|process| process.env).unwrap_or_default();
        env.retain(|variable| !given.contains(&name(variable)));
        env.extend(exec.env);
    }
    let request = api::AddProcessRequest {
        id: exec.id,
        pid: exec.pid,
        terminal: exec.tty,
        user: Some(api::User { uid: exec.uid, gid: exec.gid, additional_gids: Vec::new() }),
        args: exec.command,
        env,
        cwd: exec.cwd,
        ..Default::default()
    };
    if exec.attach {
        return attach::exec(target, request).await;
    }
    client.add_process(request).await?;
    Ok(ExitCode::SUCCESS)
}

async fn kill(target: &Target, kill: Kill) -> Result<ExitCode, Failure> {
    let request = api::SignalRequest { id: kill.id, pid: kill.pid, signal: kill.signal };
    target.connect().await?.signal(request).await?;
    Ok(ExitCode::SUCCESS)
}

async fn set_status(target: &Target, id: String, status: &str) -> Result<ExitCode, Failure> {
    let request = api::UpdateContainerRequest { id, status: status.into(), ..Default::default() };
    target.connect().await?.update_container(request).await?;
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
    target.connect().await?.update_container(request).await?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<ExitCode, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}
