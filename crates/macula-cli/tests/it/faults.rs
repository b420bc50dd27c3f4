//! Peers that die, stall and come back: everybody else goes on.

use std::io::Write;
use std::process::Stdio;

use rustix::process::Signal;

use crate::harness::{Gateway, Running, macula, run_with, wait_for};

#[test]
fn a_publisher_killed_while_publishing_leaves_the_others_working() {
    let gateway = Gateway::start();
    let sub = gateway.ready("lab", "sub", &["t"]);
    let pinned = gateway.pinned();
    let arguments = ["pub", "-g", &pinned, "-r", "lab", "t", "--lines", "--qos", "1"];
    let mut publisher = Running::spawn(macula(gateway.home(), &arguments).stdin(Stdio::piped()));
    let mut stdin = publisher.stdin();
    let feeder = std::thread::spawn(move || while stdin.write_all(b"from the dead\n").is_ok() {});
    wait_for("messages", || sub.stdout_bytes() > 100_000);
    publisher.signal(Signal::KILL);
    publisher.finish();
    feeder.join().unwrap();
    gateway.run("lab", "pub", &["t", "from the living", "--qos", "1"]).expect_code(0);
    wait_for("the living", || sub.stdout().ends_with("from the living\n"));
    let text = sub.stdout();
    assert!(text.lines().rev().skip(1).all(|line| line == "from the dead"));
}

#[test]
fn a_subscriber_that_stops_reading_does_not_stop_the_others() {
    let gateway = Gateway::start();
    let stopped = gateway.ready("lab", "sub", &["t"]);
    let other = gateway.ready("lab", "sub", &["t", "-C", "20000"]);
    stopped.signal(Signal::STOP);
    let pinned = gateway.pinned();
    let input: String = (0..20_000).map(|index| format!("line {index}\n")).collect();
    let arguments = ["pub", "-g", &pinned, "-r", "lab", "t", "--lines"];
    run_with(gateway.home(), &arguments, input.as_bytes()).expect_code(0);
    assert_eq!(other.finish().expect_code(0).text(), input);
    stopped.signal(Signal::CONT);
}

#[test]
fn a_provider_that_dies_is_replaced() {
    let gateway = Gateway::start();
    let first = gateway.ready("lab", "serve", &["who", "--command", "echo first"]);
    let _second = gateway.ready("lab", "serve", &["who", "--command", "echo second"]);
    first.signal(Signal::KILL);
    first.finish();
    let pinned = gateway.pinned();
    let call = ["call", "-g", &pinned, "-r", "lab", "who", "--idempotent", "--timeout", "20s"];
    for _ in 0..3 {
        let done = crate::harness::run(gateway.home(), &call).expect_code(0);
        assert_eq!(done.text(), "second\n");
    }
}

#[test]
fn a_restarted_gateway_gets_its_providers_back() {
    let mut gateway = Gateway::start();
    let serve = gateway.ready("lab", "serve", &["echo", "--echo"]);
    gateway.kill();
    gateway.restart();
    wait_for("the provider", || serve.stderr().contains("is back"));
    wait_for("its registration", || gateway.run("lab", "call", &["echo", "x"]).code == Some(0));
}

#[test]
fn what_is_not_confirmed_in_time_is_counted() {
    let mut gateway = Gateway::start();
    let sub = gateway.ready("lab", "sub", &["t"]);
    let pinned = gateway.pinned();
    let arguments =
        ["pub", "-g", &pinned, "-r", "lab", "t", "--lines", "--qos", "1", "--timeout", "1s"];
    let mut publisher = Running::spawn(macula(gateway.home(), &arguments).stdin(Stdio::piped()));
    let mut stdin = publisher.stdin();
    stdin.write_all(b"one\n").unwrap();
    wait_for("the first message", || sub.stdout() == "one\n");
    gateway.kill();
    stdin.write_all(b"two\nthree\n").unwrap();
    drop(stdin);
    let done = publisher.finish().expect_code(5);
    // The gateway may have been killed before it told of the first, too.
    let said = |count: u8| format!("{count} of 3 messages are not confirmed");
    assert!([2, 3].iter().any(|it| done.stderr.contains(&said(*it))), "{}", done.stderr);
}

#[test]
fn garbage_on_the_port_harms_nobody() {
    let gateway = Gateway::start();
    let sub = gateway.ready("lab", "sub", &["t", "-C", "1"]);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut noise = 1u32;
    for size in 0..1_400 {
        let datagram: Vec<u8> = (0..size)
            .map(|_| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (noise >> 24) as u8
            })
            .collect();
        socket.send_to(&datagram, &gateway.addr).unwrap();
    }
    gateway.run("lab", "pub", &["t", "still here"]).expect_code(0);
    assert_eq!(sub.finish().expect_code(0).text(), "still here\n");
}
