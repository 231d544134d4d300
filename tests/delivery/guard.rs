//! What the guarded client does when it really connects.

use std::time::Duration;

use reqwest::Method;
use switchboard::guard::{Guard, GuardError, Timeouts, client};
use url::Url;

use crate::waha::server::{Act, Scripted, answer};

fn named(scripted: &Scripted, scheme: &str) -> Url {
    format!("{scheme}://localhost:{}/hook", scripted.url.port().unwrap()).parse().unwrap()
}

#[tokio::test]
async fn private_addresses_are_refused_before_a_connection() {
    let scripted = Scripted::start(vec![answer("200 OK", "")]).await;
    let guarded = client(&Guard::new(false), Timeouts::default()).unwrap();
    for url in [scripted.url.clone(), named(&scripted, "http"), named(&scripted, "https")] {
        assert!(guarded.request(Method::POST, &url).is_err(), "{url}");
    }
    assert_eq!(scripted.connections(), 0);
}

#[tokio::test]
async fn a_name_that_turns_out_private_is_refused_in_the_connector() {
    // What the URL check would say is left out here: this is the line behind it.
    let scripted = Scripted::start(vec![answer("200 OK", "")]).await;
    let _installs_the_tls_provider = client(&Guard::new(false), Timeouts::default()).unwrap();
    let http = reqwest::Client::builder().no_proxy().dns_resolver(Guard::new(false).resolver()).build().unwrap();
    let error = http.get(named(&scripted, "http")).send().await.unwrap_err();
    assert!(error.is_connect());
    assert_eq!(GuardError::behind(&error), Some(GuardError::NotPublic));
    assert_eq!(scripted.connections(), 0);
}

#[tokio::test]
async fn redirects_are_answers_and_not_followed() {
    let scripted = Scripted::start(vec![answer("302 Found\r\nLocation: /elsewhere", "")]).await;
    let guarded = client(&Guard::new(true), Timeouts::default()).unwrap();
    let response = guarded.request(Method::POST, &named(&scripted, "http")).unwrap().body("{}").send().await.unwrap();
    assert_eq!(response.status(), 302);
    let requests = scripted.requests();
    assert_eq!(requests.len(), 1);
    let head = requests[0].to_ascii_lowercase();
    assert!(head.starts_with("post /hook ") && head.contains("user-agent: switchboard/"), "{head}");
}

#[tokio::test]
async fn an_endpoint_that_hangs_is_given_up() {
    let scripted = Scripted::start(vec![Act::Hang]).await;
    let timeouts = Timeouts { total: Duration::from_millis(100), ..Timeouts::default() };
    let guarded = client(&Guard::new(true), timeouts).unwrap();
    let error = guarded.request(Method::POST, &scripted.url).unwrap().send().await.unwrap_err();
    assert!(error.is_timeout());
    assert_eq!(GuardError::behind(&error), None);
}
