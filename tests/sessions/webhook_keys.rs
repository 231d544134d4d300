//! Webhook keys are replaced, and no event is refused for that.

use std::time::Duration;

use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::ExposeSecret;
use serde_json::json;
use sha2::Sha512;
use switchboard::domain::chance::Chance;
use switchboard::domain::ids::{SessionId, TenantId};
use switchboard::identity::seal::Sealer;
use switchboard::ingest::intake::{self, IntakeError};
use switchboard::sessions::create;
use switchboard::sessions::directory::DirectoryError;
use switchboard::sessions::queries::{self, Wish};
use switchboard::sessions::view::SessionRow;
use switchboard::sessions::webhook_keys::{self, GRACE, Tally, Whose};
use switchboard::waha::Engine;

use super::stand::{Node, Stand, insert_server, session};

const STEP: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);

const ROTATED: Tally = Tally { rotated: 1, skipped: 0 };
const SKIPPED: Tally = Tally { rotated: 0, skipped: 1 };

async fn rotate(stand: &Stand, whose: Whose) -> Tally {
    let app = &stand.app;
    let tally = webhook_keys::rotate(&app.db, &app.clock, &app.sealer, &app.chance, whose).await.unwrap();
    create::announce(app).await;
    tally
}

/// A session on a clock that is moved.
struct Keyed {
    stand: Stand,
    tenant: TenantId,
    row: SessionRow,
}

impl Keyed {
    /// It works, and a node sees to that.
    async fn new() -> (Self, Node) {
        let stand = Stand::moved(&[]).await;
        let tenant = stand.tenant("a").await;
        stand.server(5).await;
        let node = Stand::reconcile(&stand.app);
        let row = stand.create(tenant, session("a")).await.unwrap();
        let keyed = Self { stand, tenant, row };
        keyed.becomes("working").await;
        keyed.settled().await;
        (keyed, node)
    }

    async fn becomes(&self, status: &str) {
        let is = async || self.stand.find(self.tenant, self.row.id).await.filter(|row| row.status == status);
        self.stand.moving(STEP, status, is).await;
    }

    async fn settled(&self) {
        let open = "SELECT count(*) FROM waha_sessions WHERE reconcile_at IS NOT NULL OR reconcile_lease IS NOT NULL";
        let none = async || (self.stand.count(open).await == 0).then_some(());
        self.stand.moving(STEP, "nothing to be reconciled", none).await;
    }

    async fn want(&self, wish: Wish) {
        let (id, now) = (self.row.id, self.stand.app.clock.now());
        let db = &self.stand.app.db;
        let wanted = db.tenant(self.tenant, async move |conn| queries::want(conn, id, wish, "me", now).await).await;
        assert!(wanted.unwrap().is_some());
    }

    async fn key(&self) -> String {
        self.stand.webhook_key(self.tenant, self.row.id).await
    }

    fn key_at_waha(&self) -> String {
        let key = self.stand.simulator.control().webhook_key(&self.row.external_session_id).unwrap();
        key.unwrap().expose_secret().to_owned()
    }

    /// Until when the previous key is accepted, as far as that is known.
    async fn until(&self) -> Option<DateTime<Utc>> {
        let app = &self.stand.app;
        app.generation.refresh(&app.db).await.unwrap();
        let entry = app.directory.session(self.tenant, self.row.id).await.unwrap().unwrap();
        entry.previous_webhook_key.as_ref().and_then(|previous| previous.until)
    }

    /// Whether an event that is signed with `key` is taken.
    async fn takes(&self, key: &str) -> bool {
        let event = json!({"id": "evt_1", "event": "session.status", "session": self.row.external_session_id,
            "payload": {"status": "WORKING"}});
        let body = event.to_string();
        let mac = Hmac::<Sha512>::new_from_slice(key.as_bytes()).unwrap().chain_update(&body);
        let signature = hex::encode(mac.finalize().into_bytes());
        match intake::receive(&self.stand.app, self.row.waha_server_id, &signature, body.into()).await {
            Ok(()) => true,
            Err(IntakeError::BadSignature) => false,
            Err(fault) => panic!("{fault}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_previous_key_is_accepted_until_hours_after_waha_has_the_new_one() {
    let (keyed, node) = Keyed::new().await;
    let (clock, whose) = (&keyed.stand.app.clock, Whose::Session(keyed.row.id));
    let old = keyed.key().await;
    assert_eq!(rotate(&keyed.stand, whose).await, ROTATED);
    let new = keyed.key().await;
    assert_ne!(old, new);
    assert!(keyed.takes(&old).await && keyed.takes(&new).await && !keyed.takes("another").await);

    // It works and is left alone, however long; another key would push out the one that WAHA signs with.
    keyed.settled().await;
    clock.advance((GRACE * 2).to_std().unwrap());
    assert_eq!((keyed.until().await, keyed.key_at_waha()), (None, old.clone()));
    assert_eq!(rotate(&keyed.stand, Whose::All).await, SKIPPED);
    assert!(keyed.key().await == new && keyed.takes(&old).await);

    let stopping = clock.now();
    keyed.want(Wish::Stop).await;
    keyed.becomes("stopped").await;
    keyed.want(Wish::Start).await;
    keyed.becomes("working").await;
    keyed.settled().await;
    assert_eq!(keyed.key_at_waha(), new);
    assert_eq!(keyed.stand.counter.calls("PUT").values().sum::<usize>(), 1);
    node.stop().await;

    let until = keyed.until().await.expect("an end");
    assert!(stopping + GRACE < until && until < clock.now() + GRACE, "it begins when WAHA has the key");
    clock.advance((until - clock.now()).to_std().unwrap() - SECOND);
    assert!(keyed.takes(&old).await && keyed.takes(&new).await);
    assert_eq!(rotate(&keyed.stand, whose).await, SKIPPED, "WAHA may repeat what it signed with the old one");
    clock.advance(SECOND);
    assert!(!keyed.takes(&old).await && keyed.takes(&new).await);
    assert_eq!(rotate(&keyed.stand, whose).await, ROTATED);
    assert!(!keyed.takes(&old).await && keyed.takes(&new).await && keyed.takes(&keyed.key().await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_waha_does_not_have_yet_is_created_with_the_new_key() {
    let stand = Stand::moved(&[]).await;
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let row = stand.create(tenant, session("a")).await.unwrap();
    let keyed = Keyed { stand, tenant, row };
    assert_eq!(rotate(&keyed.stand, Whose::All).await, ROTATED);
    let node = Stand::reconcile(&keyed.stand.app);
    keyed.becomes("working").await;
    keyed.settled().await;
    assert_eq!(keyed.key_at_waha(), keyed.key().await);
    assert!(keyed.until().await.is_some() && keyed.stand.counter.calls("PUT").is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_sessions_that_are_meant_get_new_keys() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    stand.server(1).await;
    let one = stand.create(tenant, session("one")).await.unwrap();
    let server = insert_server(&stand.app, "waha-2", &stand.counter.url, Engine::Noweb, 1).await;
    let two = stand.create(tenant, session("two")).await.unwrap();
    assert_eq!(two.waha_server_id, server);
    let keys = async || [stand.webhook_key(tenant, one.id).await, stand.webhook_key(tenant, two.id).await];
    let sql = stand.sql().await;
    sql.batch_execute("UPDATE waha_sessions SET reconcile_at = NULL").await.unwrap();

    let before = keys().await;
    let nobody = SessionId::fresh(stand.app.clock.now(), &stand.app.chance);
    assert_eq!(rotate(&stand, Whose::Session(nobody)).await, Tally::default());
    // Under a master key that is not the nodes' own, they could not open what is sealed.
    let stranger = Sealer::new(&"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".parse().unwrap(), Chance::from_system());
    let app = &stand.app;
    let refused = webhook_keys::rotate(&app.db, &app.clock, &stranger, &app.chance, Whose::All).await;
    assert!(matches!(refused, Err(DirectoryError::Sealed(_))), "{refused:?}");
    create::announce(app).await;
    assert_eq!(keys().await, before);

    assert_eq!(rotate(&stand, Whose::Server(server)).await, ROTATED);
    let after = keys().await;
    assert!(after[0] == before[0] && after[1] != before[1]);
    let due = format!("SELECT count(*) FROM waha_sessions WHERE (reconcile_at IS NOT NULL) = (id = '{}')", two.id);
    assert_eq!(stand.count(&due).await, 2, "the reconciler looks at the one that has a new key");
    assert_eq!(rotate(&stand, Whose::All).await, Tally { rotated: 1, skipped: 1 });
    let last = keys().await;
    assert!(last[0] != before[0] && last[1] == after[1]);

    sql.batch_execute("UPDATE waha_sessions SET deleted_at = now(), previous_webhook_key_sealed = NULL").await.unwrap();
    assert_eq!(rotate(&stand, Whose::All).await, Tally::default());
}
