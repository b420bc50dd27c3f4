//! Many sensors, one wildcard: each sensor publishes on its own topic, the monitor sees them all.
//!
//! Runs by itself; with `MACULA_GATEWAY=HOST:PORT` it uses that gateway instead of its own.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use macula::{Node, Qos, Router};

type Error = Box<dyn std::error::Error + Send + Sync>;

const SENSORS: usize = 3;
const READINGS: usize = 4;

#[tokio::main]
async fn main() -> Result<(), Error> {
    run().await
}

pub(crate) async fn run() -> Result<(), Error> {
    let (router, gateway) = gateway().await?;
    let monitor = Node::builder().realm("com.example.energy").gateway(&gateway).start().await?;
    let mut readings = monitor.subscribe("sensor.*.temperature").await?;

    let plant = Node::builder().realm("com.example.energy").gateway(&gateway).start().await?;
    for sensor in 0..SENSORS {
        let publisher = plant
            .publisher(&format!("sensor.{sensor}.temperature"))
            .qos(Qos::AtLeastOnce)
            .open()?;
        tokio::spawn(async move {
            for reading in 0..READINGS {
                publisher.publish(format!("{}.5", 20 + reading)).await?;
            }
            let report = publisher.flush().await?;
            println!("{} delivered: {}", publisher.topic(), report.delivered);
            Ok::<_, macula::PublishError>(())
        });
    }

    for _ in 0..SENSORS * READINGS {
        let reading = readings.next().await.ok_or("the subscription has ended")?;
        let celsius = String::from_utf8_lossy(&reading.payload);
        println!("{} #{}: {celsius} °C", reading.topic(), reading.sequence);
    }
    plant.close().await;
    monitor.close().await;
    if let Some(router) = router {
        router.close().await;
    }
    Ok(())
}

/// The gateway to use: the one that was named, or one made for this run.
async fn gateway() -> Result<(Option<Router>, String), Error> {
    if let Ok(gateway) = std::env::var("MACULA_GATEWAY") {
        return Ok((None, gateway));
    }
    let router = Router::builder()
        .listen("127.0.0.1:0".parse()?)
        .realm("com.example.energy")
        .start()
        .await?;
    let gateway = format!("{}@{}", router.id(), router.local_addr());
    Ok((Some(router), gateway))
}
