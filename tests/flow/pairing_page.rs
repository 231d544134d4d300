//! The pairing page in a real browser.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use switchboard::simulator::Engine;

use super::pairing::Pairing;
use crate::support::world::{Client, PATIENCE, text};
use crate::support::{Browser, eventually};

const STATE: &str = "return document.body.dataset.state";

impl Pairing {
    async fn link(&self, seconds: i64) -> String {
        let body = json!({"expires_in_seconds": seconds});
        let link = self.tenant.post(&format!("{}/pairing-link", self.path), &body).await.expect(StatusCode::CREATED);
        text(&link, "url").to_owned()
    }

    /// The gateway's own picture of the code, as a page would hold it.
    async fn picture(&self) -> String {
        let request = self.tenant.request(Method::GET, &format!("{}/qr", self.path)).header("Accept", "image/png");
        let bytes = request.send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap();
        format!("data:image/png;base64,{}", STANDARD.encode(bytes))
    }

    /// Moves the clock until the page is in this state.
    async fn page_is(&self, browser: &Browser, state: &str) {
        eventually(PATIENCE, &format!("the page to say {state}"), async || {
            if browser.run(STATE).await == state {
                return Some(());
            }
            self.clock.advance(Duration::from_millis(500));
            None
        })
        .await;
    }
}

/// The code that the page shows, if it can be seen.
async fn shown(browser: &Browser, rotation: i64) -> String {
    let script = format!(
        "const qr = document.getElementById('qr');
         return qr.dataset.rotation === '{rotation}' && qr.naturalWidth > 200 && qr.checkVisibility() && qr.src"
    );
    browser.until(&format!("code {rotation} on the page"), &script).await.as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_each_code_asks_for_more_and_ends_in_success() {
    let pairing = Pairing::begin(Engine::Noweb).await;
    let browser = Browser::start().await;
    browser.resize(360, 740).await;
    let link = pairing.link(900).await;
    browser.open(&link).await;
    browser.until("a first word", &format!("{STATE} === 'starting'")).await;

    pairing.rotation(1).await;
    let first = shown(&browser, 1).await;
    assert_eq!(first, pairing.picture().await, "the code is the gateway's");
    assert!(browser.text().await.contains("Scan the code with your phone"));
    browser
        .until(
            "the countdown",
            "return /A new code comes in \\d+ s/.test(document.getElementById('countdown').textContent)",
        )
        .await;
    let fits = browser.run("return document.documentElement.scrollWidth <= window.innerWidth").await;
    assert_eq!(fits, true, "nothing sticks out of a narrow screen");

    // The next one takes its place.
    pairing.nearly_expire(&pairing.qr().await);
    pairing.rotation(2).await;
    let second = shown(&browser, 2).await;
    assert_ne!(second, first);
    assert_eq!(second, pairing.picture().await);

    // A code to type, for whoever cannot scan.
    browser.click("summary").await;
    browser.write("#phone", "12").await;
    browser.click("#number-form button").await;
    browser
        .until("the rule", "return document.getElementById('number-problem').textContent.includes('country code')")
        .await;
    browser.write("#phone", " 555 010 0001").await;
    browser.click("#number-form button").await;
    let code = browser.until("a code", "return document.getElementById('pairing-code').textContent").await;
    assert_eq!(code.as_str().unwrap().len(), 9, "{code}");

    // Nobody does anything: the codes run out, and there are more for the asking.
    pairing.page_is(&browser, "expired").await;
    assert_eq!(browser.run("return document.getElementById('qr').hasAttribute('src')").await, false);
    browser.click("#restart").await;
    pairing.rotation(1).await;
    let fresh = shown(&browser, 1).await;
    assert!(fresh != first && fresh == pairing.picture().await);

    // The phone scans.
    pairing.world.simulator.control().scan(&pairing.external).unwrap();
    pairing.page_is(&browser, "connected").await;
    let said = browser.text().await;
    assert!(said.contains("Connected. You can close this page."), "{said}");
    let left = "return document.documentElement.outerHTML.includes('data:image') || document.getElementById('scan').checkVisibility()";
    assert_eq!(browser.run(left).await, false, "nothing but success is left");
    assert_eq!(
        browser.complaints().await.into_iter().filter(|line| !line.contains(" 422 ")).collect::<Vec<_>>(),
        Vec::<String>::new()
    );

    // Whatever happens to the session later, this link shows nothing else.
    pairing.world.simulator.control().phone_logout(&pairing.external).unwrap();
    pairing.status("failed").await;
    browser.open(&link).await;
    browser.until("success again", &format!("{STATE} === 'connected'")).await;
    let script = "return fetch(location.pathname + '/restart', {method: 'POST'}).then((answer) => answer.status)";
    assert_eq!(browser.run(script).await, 409);
    drop(browser);
    pairing.node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_or_an_expired_link_shows_nothing() {
    let pairing = Pairing::begin(Engine::Noweb).await;
    let browser = Browser::start().await;
    pairing.rotation(1).await;
    let link = pairing.link(60).await;
    browser.open(&link).await;
    shown(&browser, 1).await;

    // It expires while it is open, and then for good.
    eventually(PATIENCE, "the open page to say so", async || {
        pairing.clock.advance(Duration::from_secs(5));
        (browser.run(STATE).await == "gone").then_some(())
    })
    .await;
    assert_eq!(browser.run("return document.getElementById('qr').hasAttribute('src')").await, false);

    let base = &pairing.node.base;
    let (kept, end) = link.split_at(link.len() - 12);
    let tampered = format!("{kept}{}", end.chars().rev().collect::<String>());
    let mut pages: Vec<Value> = Vec::new();
    for url in [link.clone(), tampered, format!("{base}/pair/{}", "A".repeat(107)), format!("{base}/pair/x")] {
        browser.open(&url).await;
        let script =
            "return [document.title, document.body.innerText, document.images.length, document.scripts.length]";
        pages.push(browser.run(script).await);
    }
    assert!(pages.iter().all(|page| *page == pages[0]), "{pages:?}");
    assert_eq!((&pages[0][0], &pages[0][2], &pages[0][3]), (&json!("This link cannot be used"), &json!(0), &json!(0)));
    let answer = Client::send(pairing.tenant.request(Method::GET, &link.replace(base, ""))).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    drop(browser);
    pairing.node.node.stop().await;
}
