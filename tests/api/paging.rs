//! Lists: newest first, and stable while rows are being added.

use serde_json::json;

use super::Stand;
use super::stand::PLATFORM_KEY;

#[tokio::test(flavor = "multi_thread")]
async fn pages_join_up_while_rows_are_added() {
    let stand = Stand::new().await;
    for index in 0..7 {
        stand.tenant(&format!("t{index}")).await;
    }
    let mut seen = Vec::new();
    let mut cursor = None::<String>;
    loop {
        let after = cursor.as_ref().map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let page = stand.get(&format!("/v1/tenants?limit=3{after}"), PLATFORM_KEY).await.expect(200).json();
        let names = page["data"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned());
        seen.extend(names);
        stand.tenant(&format!("added after {}", seen.len())).await;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    assert_eq!(seen, ["t6", "t5", "t4", "t3", "t2", "t1", "t0"]);
    let whole = stand.get("/v1/tenants?limit=200", PLATFORM_KEY).await.json();
    assert_eq!((whole["data"].as_array().unwrap().len(), &whole["next_cursor"]), (10, &json!(null)));
    stand.end().await;
}
