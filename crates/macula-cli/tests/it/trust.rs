//! Keys: who a gateway is, and whose files are used.

use std::os::unix::fs::PermissionsExt;

use crate::harness::{Gateway, run};

#[test]
fn the_first_key_is_pinned_and_another_one_refused() {
    let mut gateway = Gateway::start();
    let home = tempfile::tempdir().unwrap();
    let addr = gateway.addr.clone();
    let publish = ["pub", "-g", &addr, "-r", "lab", "t", "x"];
    run(home.path(), &publish).expect_code(0);
    let known = home.path().join("known-gateways");
    let pin = std::fs::read_to_string(&known).unwrap();
    assert_eq!(pin, format!("{addr} {}\n", gateway.id));
    std::fs::write(&known, format!("# mine\nother:1 {}\n{pin}", gateway.id)).unwrap();

    // Somebody else at the same address.
    gateway.kill();
    std::fs::remove_file(gateway.home().join("gateway.key")).unwrap();
    let arguments = ["gateway", "--json", "--listen", &addr];
    let other = crate::harness::Running::start(gateway.home(), &arguments);
    crate::harness::wait_for("the other gateway", || other.stdout().contains("listening"));
    let listening: serde_json::Value =
        serde_json::from_str(other.stdout().lines().next().unwrap()).unwrap();
    let other_id = listening["id"].as_str().unwrap().to_owned();

    let done = run(home.path(), &publish).expect_code(4);
    let path = known.to_str().unwrap();
    for part in [gateway.id.as_str(), &other_id, "line 3", path] {
        assert!(done.stderr.contains(part), "{part} is missing in {}", done.stderr);
    }
    let by_id = format!("{}@{addr}", gateway.id);
    let done = run(home.path(), &["pub", "-g", &by_id, "-r", "lab", "t", "x"]).expect_code(4);
    assert!(done.stderr.contains(&other_id), "{}", done.stderr);
    let by_id = format!("{other_id}@{addr}");
    run(home.path(), &["pub", "-g", &by_id, "-r", "lab", "t", "x"]).expect_code(0);

    // What the advice says works.
    std::fs::write(&known, format!("# mine\nother:1 {}\n", gateway.id)).unwrap();
    run(home.path(), &publish).expect_code(0);
}

#[test]
fn keygen_creates_shows_and_protects() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("key");
    let path = file.to_str().unwrap();
    let id = run(home.path(), &["keygen", "--out", path]).expect_code(0).text();
    assert_eq!(id.trim().len(), 52);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(run(home.path(), &["keygen", "--show", path]).expect_code(0).text(), id);
    let done = run(home.path(), &["keygen", "--out", path]).expect_code(1);
    assert!(done.stderr.contains("--force"), "{}", done.stderr);
    let other = run(home.path(), &["keygen", "--out", path, "--force"]).expect_code(0).text();
    assert_ne!(other, id);
    run(home.path(), &["keygen"]).expect_code(0);
    assert!(home.path().join("client.key").exists());
}

#[test]
fn a_client_with_a_key_file_is_who_it_says() {
    let gateway = Gateway::start();
    let file = gateway.home().join("key");
    let path = file.to_str().unwrap();
    let id = run(gateway.home(), &["keygen", "--out", path]).expect_code(0).text();
    let sub = gateway.ready("lab", "sub", &["t", "-C", "1", "--json"]);
    gateway.run("lab", "pub", &["t", "x", "--key", path]).expect_code(0);
    let message: serde_json::Value =
        serde_json::from_str(&sub.finish().expect_code(0).text()).unwrap();
    assert_eq!(message["publisher"], id.trim());
    let done = gateway.run("lab", "pub", &["t", "x", "--key", "/no/such/key"]).expect_code(1);
    assert!(done.stderr.contains("keygen"), "{}", done.stderr);
}

#[test]
fn a_bad_key_file_ends_with_1_and_says_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("gateway.key");
    let start = || run(home.path(), &["gateway", "--listen", "127.0.0.1:0"]).expect_code(1).stderr;
    std::fs::write(&file, "not a key\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let error = start();
    assert!(error.contains("gateway.key") && error.contains("hint"), "{error}");
    run(home.path(), &["keygen", "--out", file.to_str().unwrap(), "--force"]).expect_code(0);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = start();
    assert!(error.contains("chmod 600"), "{error}");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let error = start();
    assert!(error.contains("gateway.key"), "{error}");
}
