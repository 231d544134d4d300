//! Help, and starts that cannot succeed: one clear line, and a code that scripts see.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use crate::support::{Process, TestDb, World, free_port};

use super::{good, run};

/// One line that begins with the program's name and holds `words`; the exit code says failure.
#[track_caller]
fn one_clear_line((code, output): (i32, String), words: &[&str]) {
    assert_ne!(code, 0, "{output}");
    assert_eq!(output.trim_end().lines().count(), 1, "one line: {output}");
    assert!(output.starts_with("switchboard: "), "{output}");
    for word in words {
        assert!(output.contains(word), "{word} in {output}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_subcommand_explains_itself() {
    let nothing = BTreeMap::new();
    let commands: [(&[&str], &str); 14] = [
        (&[], "doctor"),
        (&["serve"], "--roles"),
        (&["migrate"], "--down"),
        (&["admin"], "create-platform-key"),
        (&["admin", "create-platform-key"], "--name"),
        (&["admin", "create-tenant"], "--description"),
        (&["admin", "create-api-key"], "--scopes"),
        (&["admin", "rotate-master-key"], "SWITCHBOARD_MASTER_KEY_PREVIOUS"),
        (&["admin", "rotate-webhook-keys"], "--server"),
        (&["openapi"], "--check"),
        (&["simulate"], "+15550100003"),
        (&["doctor"], "--dev"),
        (&["bench"], "--seconds"),
        (&["help", "serve"], "--roles"),
    ];
    for (command, words) in commands {
        let help = if command.first() == Some(&"help") { command.to_vec() } else { [command, &["--help"]].concat() };
        let output = good(&help, &nothing).await;
        assert!(output.contains(words) && output.contains("Usage: switchboard"), "{command:?}: {output}");
    }
    assert!(good(&["--version"], &nothing).await.starts_with("switchboard "));
    for wrong in [vec!["serv"], vec!["migrate", "--down", "x"], vec!["serve", "--roles", "api,cook"], vec![]] {
        let (code, output) = run(&wrong, &nothing).await;
        assert_eq!(code, 2, "{wrong:?}: {output}");
    }
    let (_, output) = run(&["serve", "--roles", "api,cook"], &nothing).await;
    assert!(output.contains("a role is one of api, dispatch, send, ingest, deliver"), "{output}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_cannot_succeed_says_why_in_one_line() {
    let world = World::new().await;
    let settings = world.settings(free_port());
    let with = |name: &str, value: Option<&str>| {
        let mut settings = settings.clone();
        match value {
            Some(value) => settings.insert(name.to_owned(), value.to_owned()),
            None => settings.remove(name),
        };
        settings
    };
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().to_string();
    one_clear_line(run(&["serve"], &with("SWITCHBOARD_BIND", Some(&port))).await, &["SWITCHBOARD_BIND", &port]);
    let metrics = with("SWITCHBOARD_METRICS_BIND", Some(&port));
    one_clear_line(run(&["serve"], &metrics).await, &["SWITCHBOARD_METRICS_BIND", &port]);
    one_clear_line(run(&["simulate", "--bind", &port], &BTreeMap::new()).await, &[&port]);

    for command in [&["serve"][..], &["migrate"], &["admin", "create-platform-key"]] {
        one_clear_line(run(command, &with("DATABASE_URL", None)).await, &["DATABASE_URL", "not set"]);
        one_clear_line(run(command, &with("DATABASE_URL", Some("not a url"))).await, &["DATABASE_URL"]);
        let nobody = format!("postgres://nobody:secret@127.0.0.1:{}/nothing", free_port());
        let answer = run(command, &with("DATABASE_URL", Some(&nobody))).await;
        assert!(!answer.1.contains("secret"), "{}", answer.1);
        one_clear_line(answer, &["DATABASE_URL"]);
        let mut missing: url::Url = settings["DATABASE_URL"].parse().unwrap();
        missing.set_path("/switchboard_there_is_no_such_database");
        one_clear_line(run(command, &with("DATABASE_URL", Some(missing.as_str()))).await, &["DATABASE_URL"]);
    }
    one_clear_line(run(&["serve"], &with("AMQP_URL", None)).await, &["AMQP_URL", "not set"]);
    let no_key = run(&["serve"], &with("SWITCHBOARD_MASTER_KEY", None)).await;
    one_clear_line(no_key, &["SWITCHBOARD_MASTER_KEY", "openssl rand -base64 32"]);
    let short = run(&["serve"], &with("SWITCHBOARD_MASTER_KEY", Some("c2hvcnQ="))).await;
    one_clear_line(short, &["SWITCHBOARD_MASTER_KEY", "32 bytes"]);
    one_clear_line(run(&["serve"], &with("SWITCHBOARD_TYPO", Some("1"))).await, &["SWITCHBOARD_TYPO"]);
    one_clear_line(run(&["serve"], &with("SWITCHBOARD_LOG", Some("a=b=c"))).await, &["SWITCHBOARD_LOG"]);
    one_clear_line(run(&["serve"], &with("SWITCHBOARD_CONFIG", Some("/nowhere"))).await, &["SWITCHBOARD_CONFIG"]);
    drop(busy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_go_up_down_and_up() {
    let db = TestDb::empty().await;
    let settings = [("DATABASE_URL", db.url()), ("AMQP_URL", "amqp://127.0.0.1:1".to_owned())]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
    let count = crate::support::database::migration_names().len();
    let first = good(&["migrate"], &settings).await;
    assert_eq!(first.lines().filter(|line| line.starts_with("applied ")).count(), count, "{first}");
    assert_eq!(good(&["migrate"], &settings).await, "The schema is up to date.");
    let down = good(&["migrate", "--down", "1"], &settings).await;
    assert_eq!(down.lines().filter(|line| line.starts_with("taken back ")).count(), 1, "{down}");
    let again = good(&["migrate"], &settings).await;
    assert_eq!(again.replace("applied ", ""), down.replace("taken back ", ""));
    let all = good(&["migrate", "--down", "1000"], &settings).await;
    assert_eq!(all.lines().count(), count, "{all}");
    good(&["migrate"], &settings).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_document_is_compared_with_the_committed_one() {
    let nothing = BTreeMap::new();
    let document = good(&["openapi"], &nothing).await + "\n";
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("openapi-{}.json", std::process::id()));
    let path = file.to_str().unwrap();
    std::fs::write(&file, &document).unwrap();
    assert_eq!(good(&["openapi", "--check", "--file", path], &nothing).await, "");
    std::fs::write(&file, document.replacen("3.1", "3.0", 1)).unwrap();
    one_clear_line(run(&["openapi", "--check", "--file", path], &nothing).await, &["make openapi"]);
    std::fs::remove_file(&file).unwrap();
    one_clear_line(run(&["openapi", "--check", "--file", path], &nothing).await, &[path]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulator_starts_and_ends() {
    let mut process = Process::switchboard(&["simulate", "--bind", "127.0.0.1:0"], []);
    process.wait_output(Duration::from_secs(30), "listens on http://127.0.0.1:").await;
    let status = process.terminate(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "{}", process.output());
}
