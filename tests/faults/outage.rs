//! WAHA being away is a pause.

use std::sync::Arc;

use chrono::TimeDelta;
use secrecy::{SecretBox, SecretString};
use switchboard::broker::envelope::OutboundRef;
use switchboard::domain::ids::{MessageId, SessionId, TenantId, WahaServerId};
use switchboard::sending::Tools;
use switchboard::sending::attempt::{self, Way};
use switchboard::sending::claim::{Before, Claimed, Number};
use switchboard::sending::outcome::{Doubt, Outcome};
use switchboard::serve::Role;
use switchboard::sessions::directory::{ServerEntry, SessionEntry};
use switchboard::waha::{Engine, Server};

use crate::support::world::text;
use crate::support::{World, free_port, invariants};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_long_no_connection_comes_about_the_message_waits() {
    let world = World::new().await;
    let node = world.node_with(&[Role::Api], |_| {});
    let (app, now) = (&node.app, node.app.clock.now());
    let (tenant, server) = (TenantId::fresh(now, &app.chance), WahaServerId::fresh(now, &app.chance));
    let session = SessionId::fresh(now, &app.chance);
    let way = Way {
        session: Arc::new(SessionEntry {
            tenant,
            id: session,
            external_name: "any".to_owned(),
            server,
            engine: Engine::Noweb,
            phone: None,
            webhook_key: SecretBox::new(Box::new(Vec::new())),
            previous_webhook_key: None,
            proxy: None,
        }),
        server: Arc::new(ServerEntry {
            id: server,
            server: Server {
                base_url: format!("http://127.0.0.1:{}", free_port()).parse().unwrap(),
                api_key: SecretString::from("any"),
            },
            engine: Engine::Noweb,
            keeps_ids: true,
        }),
    };
    for (before, doubt) in [(Before::Nothing, Doubt::None), (Before::Doubt, Doubt::Earlier)] {
        let claimed = Claimed {
            turn: OutboundRef {
                message_id: MessageId::fresh(now, &app.chance),
                session_id: session,
                tenant_id: tenant,
                fence: 1,
            },
            chat_id: "15550101234@c.us".to_owned(),
            phone: Some("+15550101234".to_owned()),
            number: Number::Trusted,
            kind: "text".to_owned(),
            content: None,
            replies: false,
            quoted: None,
            resend: false,
            expires_at: None,
            typing: false,
            body: "any".to_owned(),
            waha_message_id: Some("3EB0".to_owned()),
            attempt: 1000,
            tries: 1000,
            before,
            worker_deaths: 0,
            doubts: 7,
            created_at: now,
            lease_until: now + TimeDelta::hours(1),
            min_gap: TimeDelta::zero(),
            jitter: TimeDelta::zero(),
        };
        let outcome = attempt::make(&Tools::new(app), &claimed, Some(&way)).await;
        assert!(matches!(&outcome, Outcome::Retry { doubt: left, counts: false, .. } if *left == doubt), "{outcome:?}");
    }
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_waha_in_the_middle_loses_nothing_and_keeps_the_order() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let mut sessions = Vec::new();
    for n in 0..4 {
        sessions.push(tenant.session(&format!("s{n}")).await);
    }
    let mut messages = Vec::new();
    for n in 0..20 {
        for (number, (session, _)) in sessions.iter().enumerate() {
            let message = tenant.send_text(session, "+15550101234", &format!("{number}-{n}")).await;
            messages.push(text(&message, "id").to_owned());
        }
        if n % 7 == 3 {
            world.simulator.control().restart_after(std::time::Duration::from_millis(1500));
        }
    }
    let all = world.simulator.control().ledger_when(|ledger| ledger.entries.len() >= messages.len());
    tokio::time::timeout(crate::support::world::PATIENCE, all).await.expect("all messages");
    let ledger = world.simulator.control().ledger();
    for (number, (_, external)) in sessions.iter().enumerate() {
        let expected: Vec<String> = (0..20).map(|n| format!("{number}-{n}")).collect();
        assert_eq!(ledger.texts(external), expected, "once, and in order");
    }
    invariants::hold(&world).await;
    node.node.stop().await;
}
