//! Lists and pages stay walks along an index, however many rows there are.

use switchboard::contacts::queries as contacts;
use switchboard::conversations::queries as conversations;

use super::stand::{Stand, Tenant};

const ROWS: u32 = 100_000;

/// Two tenants with many contacts and conversations each, and one chat with many messages.
async fn fill(stand: &Stand, tenant: &Tenant<'_>) {
    let (id, session) = (tenant.id, tenant.session);
    let sql = format!(
        "INSERT INTO contacts (tenant_id, id, phone, name, push_name, created_at, updated_at)
         SELECT '{id}', gen_random_uuid(), '+' || (15550000000 + n), CASE WHEN n % 10 = 0 THEN 'Name ' || n END, 'Push ' || n,
                now() - n * interval '1 s', now() FROM generate_series(1, {rows}) n;
         INSERT INTO contact_ids (tenant_id, key, contact_id, wa_id, created_at)
         SELECT tenant_id, substr(phone, 2) || '@c.us', id, substr(phone, 2) || '@c.us', now() FROM contacts WHERE tenant_id = '{id}';
         INSERT INTO conversations (tenant_id, id, session_id, kind, contact_id, chat_id, last_message_at, unread_count, message_count, created_at, updated_at)
         SELECT tenant_id, gen_random_uuid(), '{session}', 'direct', id, substr(phone, 2) || '@c.us', created_at, (random() < 0.001)::int, 1, now(), now()
         FROM contacts WHERE tenant_id = '{id}';
         INSERT INTO messages (tenant_id, id, session_id, direction, message_type, chat_id, body, created_at, updated_at, occurred_at, status, waha_message_id)
         SELECT '{id}', gen_random_uuid(), '{session}', 'inbound', 'text', (15550000000 + n % 20) || '@c.us', 'x', now(), now(),
                now() - n * interval '1 s', 'received', 'W' || n FROM generate_series(1, {rows}) n",
        rows = ROWS / 2
    );
    // Each by itself: what other tests follow waits for long transactions.
    for statement in sql.split(';') {
        stand.sql.batch_execute(statement).await.unwrap();
    }
}

async fn explain(tenant: &Tenant<'_>, types: &str, text: &str, values: &str) -> Vec<String> {
    let sql = &tenant.stand.sql;
    let begin = format!(
        "BEGIN; SET LOCAL ROLE switchboard_tenant; SET LOCAL app.tenant_id = '{}'; SET LOCAL jit = off; SET LOCAL max_parallel_workers_per_gather = 0; PREPARE looked ({types}) AS {text}",
        tenant.id
    );
    let mut plans = Vec::new();
    for mode in ["force_generic_plan", "force_custom_plan"] {
        sql.batch_execute(&begin).await.unwrap();
        sql.batch_execute(&format!("SET LOCAL plan_cache_mode = {mode}")).await.unwrap();
        let rows = sql
            .query(&format!("EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) EXECUTE looked ({values})"), &[])
            .await
            .unwrap();
        plans.push(rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join("\n"));
        sql.batch_execute("ROLLBACK; DEALLOCATE ALL").await.unwrap();
    }
    plans
}

/// The pages that the statement touched.
fn pages(plan: &str) -> u64 {
    let line = plan.lines().find(|line| line.trim_start().starts_with("Buffers:")).unwrap_or_default();
    let number = |name: &str| {
        let rest = line.split(name).nth(1).unwrap_or("0");
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u64>().unwrap_or(0)
    };
    number("hit=") + number("read=")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_pages_walk_along_their_indexes() {
    let stand = Stand::new().await;
    let (tenant, other) = (stand.tenant().await, stand.tenant().await);
    for tenant in [&tenant, &other] {
        fill(&stand, tenant).await;
    }
    stand.sql.batch_execute("VACUUM (ANALYZE) contacts, contact_ids, conversations, messages").await.unwrap();
    let (id, session) = (tenant.id, tenant.session);
    let nobody = "00000000-0000-0000-0000-000000000000";
    let contact = tenant.rows("SELECT id FROM contacts WHERE tenant_id = $tenant LIMIT 1").await;
    let contact = contact[0]["id"].as_str().unwrap().to_owned();
    let chats = "ARRAY['15550000003@c.us', '15550000004@c.us', '77000001@lid']";

    let contact_list = |filter: contacts::Filter, after| contacts::list_text(&filter, after);
    let text = |text: &str| Some(text.to_owned());
    let plain = contacts::Filter::default();
    let by_key = contacts::Filter { key: text("k"), ..contacts::Filter::default() };
    let by_name = contacts::Filter { prefix: text("p"), ..contacts::Filter::default() };
    let conversation_list = |filter: conversations::Filter, after| conversations::list_text(&filter, after);
    let all = conversations::Filter::default();
    let unread = conversations::Filter { unread: Some(true), ..all.clone() };
    let of_session =
        conversations::Filter { session_id: Some(switchboard::domain::ids::SessionId(session)), ..all.clone() };
    let of_contact = conversations::Filter {
        contact_id: Some(switchboard::domain::ids::ContactId(contact.parse().unwrap())),
        ..all.clone()
    };
    let cases = [
        ("contacts", "contacts_created", contact_list(plain.clone(), false), "uuid, int8", format!("'{id}', 51")),
        (
            "contacts, further",
            "contacts_created",
            contact_list(plain, true),
            "uuid, timestamptz, uuid, int8",
            format!("'{id}', now() - interval '25000 s', '{nobody}', 51"),
        ),
        (
            "contacts by number",
            "contact_ids_pkey",
            contact_list(by_key, false),
            "uuid, text, int8",
            format!("'{id}', '15550000777@c.us', 51"),
        ),
        (
            "contacts by name",
            "contacts_push_name",
            contact_list(by_name, false),
            "uuid, text, text, int8",
            format!("'{id}', 'push 777', 'push 777' || chr(1114111), 51"),
        ),
        (
            "conversations",
            "conversations_active",
            conversation_list(all.clone(), false),
            "uuid, int8",
            format!("'{id}', 51"),
        ),
        (
            "conversations, further",
            "conversations_active",
            conversation_list(all, true),
            "uuid, timestamptz, uuid, int8",
            format!("'{id}', now() - interval '25000 s', '{nobody}', 51"),
        ),
        (
            "unread conversations",
            "conversations_unread",
            conversation_list(unread, false),
            "uuid, int8",
            format!("'{id}', 51"),
        ),
        (
            "conversations of a session",
            "conversations_",
            conversation_list(of_session, false),
            "uuid, uuid, int8",
            format!("'{id}', '{session}', 51"),
        ),
        (
            "conversations of a contact",
            "conversations_",
            conversation_list(of_contact, false),
            "uuid, uuid, int8",
            format!("'{id}', '{contact}', 51"),
        ),
        (
            "messages",
            "messages_chat",
            conversations::MESSAGES.to_owned(),
            "uuid, uuid, text[], int8",
            format!("'{id}', '{session}', {chats}, 51"),
        ),
        (
            "messages, further",
            "messages_chat",
            conversations::MESSAGES_AFTER.to_owned(),
            "uuid, uuid, text[], int8, timestamptz, uuid",
            format!("'{id}', '{session}', {chats}, 51, now() - interval '25000 s', '{nobody}'"),
        ),
    ];
    for (what, index, text, types, values) in cases {
        for plan in explain(&tenant, types, &text, &values).await {
            assert!(plan.contains(index), "{what}: {plan}");
            for table in ["contacts", "conversations", "messages", "contact_ids"] {
                assert!(!plan.contains(&format!("Seq Scan on {table}")), "{what}: {plan}");
            }
            assert!(pages(&plan) < 1000, "{what} touches {} pages: {plan}", pages(&plan));
        }
    }
}
