//! `macula demo`: a gateway and four peers, each a process, and what a mesh must withstand.
//!
//! [`stage`] holds the processes, [`scenes`] says what happens, [`peer`] is the program of the
//! peers, [`show`] tells the audience.

mod peer;
mod protocol;
mod scenes;
mod show;
mod stage;

use anyhow::Result;
use macula_gateway::signal::StopSignal;

use crate::args::DemoArgs;
use crate::failure::{Exit, Failure};
use crate::out;

use show::{Row, Show};
use stage::Stage;

pub(crate) use peer::run as run_peer;

/// Runs the demo; fails unless everything held.
pub(crate) async fn run(args: DemoArgs) -> Result<(), Failure> {
    let mut stop = StopSignal::listen()?;
    let show = Show::new(args.json);
    let play = async {
        let mut stage = Stage::set(&show).await?;
        let rows = play(&mut stage, &show).await?;
        show.summary(&rows)?;
        anyhow::Ok((stage, rows))
    };
    // When the play is interrupted or fails, dropping the stage kills all processes.
    let (mut stage, rows) = tokio::select! {
        played = play => played?,
        signal = stop.received() => return Err(interrupted(signal)),
    };
    if args.keep {
        stage.dismiss_peers().await?;
        let gateway = stage.gateway().address().clone();
        let (g, r) = (gateway.to_string(), scenes::REALM);
        let commands = [
            format!("macula sub -g {g} -r {r} 'hello.**' -v"),
            format!("macula pub -g {g} -r {r} hello.world 'it works'"),
            format!("macula serve -g {g} -r {r} shout --command 'tr a-z A-Z'"),
            format!("macula call -g {g} -r {r} shout 'is anybody there'"),
            format!("macula status -g {g}"),
        ];
        show.commands("The gateway goes on until Ctrl-C. Try in other terminals:", &commands)?;
        let signal = stop.received().await;
        out::note(format_args!("{signal}: the gateway ends"));
    }
    tokio::select! {
        cleared = stage.clear() => cleared?,
        signal = stop.received() => return Err(interrupted(signal)),
    }
    let broken: Vec<&str> = rows.iter().filter(|row| !row.held()).map(|row| row.scenario).collect();
    if broken.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Failure,
        format!("not everything held: {}", broken.join(", ")),
        "run it again with --json and report what you see",
    ))
}

async fn play(stage: &mut Stage, show: &Show) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    rows.push(told(show, scenes::chat(stage, show).await?)?);
    rows.push(told(show, scenes::sensors(stage, show).await?)?);
    rows.push(told(show, scenes::rpc(stage, show).await?)?);
    rows.push(told(show, scenes::realms(stage, show).await?)?);
    rows.push(told(show, scenes::restart(stage, show).await?)?);
    Ok(rows)
}

fn told(show: &Show, row: Row) -> Result<Row> {
    show.verdict(&row)?;
    Ok(row)
}

fn interrupted(signal: &str) -> Failure {
    Failure::new(Exit::Failure, format!("interrupted by {signal}; all processes were ended"), "")
}
