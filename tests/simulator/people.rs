//! What people write and do, as each engine tells it, and the ledger of conversations that it is compared with.

use serde_json::{Value, json};
use switchboard::simulator::{Direction, Engine, Naming, Writing};

use super::Bench;

const ENGINES: [Engine; 4] = [Engine::Noweb, Engine::Gows, Engine::Webjs, Engine::Wpp];
const ANN: &str = "15550101234";
const ANN_ID: &str = "15550101234@c.us";
const ANN_LID: &str = "9815550101234@lid";
const GROUP: &str = "120363000000000001@g.us";
const VCARD: &str = "BEGIN:VCARD\nVERSION:3.0\nFN:Bob\nTEL;waid=15550105555:+1 555 010 5555\nEND:VCARD";

/// The payload of the next event of this name about this bare id.
async fn told(bench: &Bench, event: &str, id: &str) -> Value {
    let about = |payload: &Value| payload["id"].as_str().is_some_and(|whole| whole.contains(id));
    bench.receiver.wait(id, |hook| hook.event() == event && about(&hook.body["payload"])).await.body["payload"].clone()
}

/// The payload of the first event of this name.
async fn first(bench: &Bench, event: &str) -> Value {
    bench.receiver.wait(event, |hook| hook.event() == event).await.body["payload"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_is_told_in_the_engines_shape() {
    for engine in ENGINES {
        let bench = Bench::start(engine).await;
        bench.working("main").await;
        let control = bench.simulator.control();
        let browser = !engine.honours_ids();
        let own = control.write("main", ANN, Writing::text("by phone").by_phone().id("OWN")).unwrap();
        assert_eq!(own, "OWN");
        for (writing, id) in [
            (Writing::text("hello").called("Ann").answering("OWN"), "TEXT"),
            (Writing::image(b"picture".as_slice()).caption("look"), "IMAGE"),
            (Writing::voice(b"sound".as_slice()), "VOICE"),
            (Writing::video(b"film".as_slice()), "VIDEO"),
            (Writing::document(b"paper".as_slice(), "a.pdf"), "FILE"),
            (Writing::location(1.5, -2.25, "here"), "PLACE"),
            (Writing::contacts(&[VCARD]), "CARD"),
            (Writing::poll("tea?", &["yes", "no"]), "POLL"),
        ] {
            control.write("main", ANN, writing.id(id)).unwrap();
        }
        let own = told(&bench, "message.any", "OWN").await;
        assert_eq!((&own["fromMe"], &own["source"], &own["ack"]), (&json!(true), &json!("app"), &json!(1)), "{engine}");
        let text = told(&bench, "message", "TEXT").await;
        assert_eq!(text["id"], format!("false_{ANN_ID}_TEXT"));
        assert_eq!((&text["body"], &text["from"], &text["ack"]), (&json!("hello"), &json!(ANN_ID), &json!(2)));
        assert_eq!((&text["replyTo"]["id"], &text["replyTo"]["body"]), (&json!("OWN"), &json!("by phone")));
        let name = ["/_data/notifyName", "/_data/pushName", "/_data/Info/PushName"];
        assert!(name.iter().any(|at| text.pointer(at) == Some(&json!("Ann"))), "{engine} {text}");
        for (id, mimetype, body) in [
            ("IMAGE", "image/jpeg", Some("look")),
            ("VOICE", "audio/ogg; codecs=opus", None),
            ("VIDEO", "video/mp4", None),
            ("FILE", "application/pdf", None),
        ] {
            let message = told(&bench, "message", id).await;
            assert_eq!((&message["hasMedia"], &message["media"]["mimetype"]), (&json!(true), &json!(mimetype)));
            let expected = body.or(browser.then_some(""));
            assert_eq!(message["body"], json!(expected), "{engine} {id}");
            let url = message["media"]["url"].as_str().unwrap();
            let path = url.strip_prefix(&bench.simulator.url()).unwrap();
            assert!(path.starts_with(&format!("/api/files/main/{id}.")), "{url}");
            let file = bench.get(path).await;
            assert_eq!(file.headers()["content-type"], mimetype);
        }
        let place = told(&bench, "message", "PLACE").await;
        assert_eq!((&place["location"]["latitude"], &place["location"]["longitude"]), (&json!("1.5"), &json!("-2.25")));
        assert_eq!(told(&bench, "message", "CARD").await["vCards"], json!([VCARD]));
        let poll = told(&bench, "message", "POLL").await;
        let options = match engine {
            Engine::Noweb => &poll["_data"]["message"]["pollCreationMessage"]["options"][1]["optionName"],
            Engine::Gows => &poll["_data"]["Message"]["pollCreationMessage"]["options"][1]["optionName"],
            _ => &poll["_data"]["pollOptions"][1]["name"],
        };
        assert_eq!(options, "no", "{engine}");

        let truth = control.conversation("main").unwrap();
        assert_eq!((truth.chats.len(), truth.chats[0].chat.as_str()), (1, ANN_ID));
        assert_eq!(truth.chats[0].lid.as_deref(), Some(ANN_LID));
        let kinds: Vec<&str> = truth.messages().map(|message| message.kind).collect();
        assert_eq!(kinds, ["text", "text", "image", "voice", "video", "file", "location", "contact", "poll"]);
        let (own, text) = (truth.message("OWN").unwrap(), truth.message("TEXT").unwrap());
        assert_eq!((own.direction, own.source, own.push_name.as_deref()), (Direction::Outbound, "app", None));
        assert_eq!((text.direction, text.push_name.as_deref()), (Direction::Inbound, Some("Ann")));
        assert_eq!(text.reply_to.as_deref(), Some("OWN"));
        assert_eq!(truth.message("FILE").unwrap().file.as_ref().unwrap().filename.as_deref(), Some("a.pdf"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_groups_the_participant_is_named() {
    for engine in ENGINES {
        let bench = Bench::start(engine).await;
        bench.working("main").await;
        let control = bench.simulator.control();
        control.group_joined("main", GROUP, "Tea", &[ANN, "15550105555"]).unwrap();
        control.write("main", GROUP, Writing::text("all").by(ANN).id("IN")).unwrap();
        control.write("main", GROUP, Writing::text("mine").by_phone().id("OWN")).unwrap();
        let naming = Naming::LID_AND_PHONE;
        control.write("main", GROUP, Writing::text("hidden").by(ANN).named(naming).id("HIDDEN")).unwrap();
        let message = told(&bench, "message", "IN").await;
        assert_eq!(message["id"], format!("false_{GROUP}_IN_{ANN_ID}"));
        assert_eq!((&message["from"], &message["participant"]), (&json!(GROUP), &json!(ANN_ID)), "{engine}");
        let own = told(&bench, "message.any", "OWN").await;
        // WAHA's source: GOWS tells the participant in `to` as well.
        let to = match engine {
            Engine::Noweb => Value::Null,
            Engine::Gows => json!("15550200000@c.us"),
            _ => json!(GROUP),
        };
        assert_eq!((&own["to"], &own["participant"]), (&to, &json!("15550200000@c.us")), "{engine}");
        let hidden = told(&bench, "message", "HIDDEN").await;
        assert_eq!(hidden["participant"], ANN_LID);
        let alternative = match engine {
            Engine::Noweb => Some(&hidden["_data"]["key"]["participantAlt"]),
            Engine::Gows => Some(&hidden["_data"]["Info"]["SenderAlt"]),
            _ => None,
        };
        assert!(alternative.is_none_or(|id| id == "15550101234@s.whatsapp.net"), "{engine} {hidden}");
        let truth = control.conversation("main").unwrap();
        assert_eq!(truth.message("HIDDEN").unwrap().participant.as_deref(), Some(ANN_ID));

        // A message to the group is acked by each of its participants.
        bench.post("/api/sendText", &json!({"session": "main", "chatId": GROUP, "text": "hi", "id": "3EB0G"})).await;
        let read =
            |hook: &super::receiver::Hook| hook.event() == "message.ack.group" && hook.body["payload"]["ack"] == 3;
        let acks = bench.receiver.wait_for("acks", 2, read).await;
        let mut who: Vec<&str> =
            acks.iter().map(|hook| hook.body["payload"]["participant"].as_str().unwrap()).collect();
        who.sort_unstable();
        assert_eq!(who, [ANN_ID, "15550105555@c.us"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_has_two_ids_and_one_conversation() {
    for (engine, chat_alt, own_alt) in [
        (Engine::Noweb, "/_data/key/remoteJidAlt", "/_data/key/remoteJidAlt"),
        (Engine::Gows, "/_data/Info/SenderAlt", "/_data/Info/RecipientAlt"),
    ] {
        let bench = Bench::start(engine).await;
        bench.working("main").await;
        let control = bench.simulator.control();
        let number = json!("15550101234@s.whatsapp.net");
        let nothing = |value: Option<&Value>| value.is_none_or(|value| value == "");
        control.write("main", ANN, Writing::text("a").named(Naming::LID).id("A")).unwrap();
        control.write("main", ANN_LID, Writing::text("b").named(Naming::LID_AND_PHONE).id("B")).unwrap();
        control.write("main", ANN, Writing::text("c").named(Naming::LID_AND_PHONE).by_phone().id("C")).unwrap();
        control.write("main", ANN, Writing::text("d").named(Naming::PHONE).id("D")).unwrap();
        let a = told(&bench, "message", "_A").await;
        assert_eq!(a["from"], ANN_LID);
        assert!(nothing(a.pointer(chat_alt)), "{a}");
        assert_eq!(told(&bench, "message", "_B").await.pointer(chat_alt), Some(&number));
        assert_eq!(told(&bench, "message.any", "_C").await.pointer(own_alt), Some(&number));
        let d = told(&bench, "message", "_D").await;
        assert!(d["from"] == ANN_ID && nothing(d.pointer(chat_alt)), "{d}");
        control.tell_again("main", "D", Naming::LID).unwrap();
        told(&bench, "message", &format!("{ANN_LID}_D")).await;
        let truth = control.conversation("main").unwrap();
        assert_eq!((truth.chats.len(), truth.chats[0].messages.len()), (1, 4));
        // A chat written to under its hidden id answers under it, and is the same chat.
        let body = json!({"session": "main", "chatId": ANN_LID, "text": "to you", "id": "3EB0LID"});
        bench.post("/api/sendText", &body).await;
        told(&bench, "message.any", &format!("{ANN_LID}_3EB0LID")).await;
        assert_eq!(control.conversation("main").unwrap().chats.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_of_messages_is_told_and_is_the_truth() {
    for engine in ENGINES {
        let bench = Bench::start(engine).await;
        bench.working("main").await;
        let control = bench.simulator.control();
        control.write("main", ANN, Writing::text("first").id("EDITED")).unwrap();
        control.write("main", ANN, Writing::text("gone").id("GONE")).unwrap();
        control.write("main", ANN, Writing::text("mine").by_phone().id("MINE")).unwrap();
        control.write("main", ANN, Writing::poll("tea?", &["yes", "no"]).id("POLL")).unwrap();
        control.edit("main", "EDITED", "second").unwrap();
        control.edit("main", "EDITED", "third").unwrap();
        control.revoke("main", "GONE").unwrap();
        control.react("main", "MINE", Some(ANN), "❤️").unwrap();
        control.react("main", "EDITED", None, "👍").unwrap();
        control.react("main", "EDITED", None, "").unwrap();
        control.vote("main", "POLL", Some(ANN), &["yes"]).unwrap();
        control.vote("main", "POLL", Some(ANN), &["no"]).unwrap();
        control.vote_failed("main", "POLL", "15550105555").unwrap();
        control.ack("main", "MINE", 4, None).unwrap();

        let edits = bench.receiver.wait_for("edits", 2, |hook| hook.event() == "message.edited").await;
        let edits: Vec<&Value> = edits.iter().map(|hook| &hook.body["payload"]).collect();
        assert!(edits.iter().all(|edit| edit["editedMessageId"] == "EDITED"));
        let same_id = edits[0]["id"] == edits[1]["id"];
        assert_eq!(same_id, engine == Engine::Webjs, "{engine}");
        let revoked = first(&bench, "message.revoked").await;
        assert_eq!(revoked["revokedMessageId"], "GONE");
        assert_eq!(revoked["before"].is_null(), engine.honours_ids());
        let reactions = bench.receiver.wait_for("reactions", 3, |hook| hook.event() == "message.reaction").await;
        let of_ann =
            reactions.iter().map(|hook| &hook.body["payload"]).find(|payload| payload["fromMe"] == false).unwrap();
        assert_eq!(of_ann["reaction"], json!({"text": "❤️", "messageId": format!("true_{ANN_ID}_MINE")}));
        assert_eq!(of_ann["from"], ANN_ID);
        let votes = bench.receiver.wait_for("votes", 2, |hook| hook.event() == "poll.vote").await;
        let last = votes
            .iter()
            .map(|hook| &hook.body["payload"])
            .max_by_key(|vote| vote["vote"]["timestamp"].as_i64())
            .unwrap();
        assert_eq!(last["poll"]["id"], format!("false_{ANN_ID}_POLL"));
        if engine.honours_ids() {
            assert_eq!(last["vote"]["selectedOptions"], json!(["no"]));
        }
        told(&bench, "message.ack", "MINE").await;
        let failed = bench.receiver.seen().iter().any(|hook| hook.event() == "poll.vote.failed");
        assert!(engine != Engine::Wpp || !failed);

        let truth = control.conversation("main").unwrap();
        let edited = truth.message("EDITED").unwrap();
        assert_eq!((edited.text.as_str(), edited.original.as_deref(), edited.edits), ("third", Some("first"), 2));
        assert!(edited.reactions.is_empty());
        assert!(truth.message("GONE").unwrap().revoked);
        let mine = truth.message("MINE").unwrap();
        assert_eq!((mine.reactions[ANN_ID].as_str(), mine.ack), ("❤️", 4));
        let votes: Vec<_> = truth.message("POLL").unwrap().votes.iter().collect();
        assert_eq!(votes, [(&ANN_ID.to_owned(), &vec!["no".to_owned()])]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stub_is_told_first_and_its_content_later() {
    for engine in ENGINES {
        let bench = Bench::start(engine).await;
        bench.working("main").await;
        let control = bench.simulator.control();
        control.write("main", ANN, Writing::text("at last").as_stub().id("STUB")).unwrap();
        let name = if engine == Engine::Webjs { "message.waiting" } else { "message" };
        let stub = told(&bench, name, "STUB").await;
        assert_eq!((&stub["ack"], &stub["hasMedia"]), (&json!(-1), &json!(false)));
        assert!(stub["body"] == "" || stub["body"].is_null());
        assert!(control.conversation("main").unwrap().message("STUB").unwrap().stub);
        control.reveal("main", "STUB").unwrap();
        let whole = bench
            .receiver
            .wait("content", |hook| hook.event() == "message" && hook.body["payload"]["body"] == "at last");
        assert_eq!(whole.await.body["payload"]["id"], stub["id"]);
        assert!(!control.conversation("main").unwrap().message("STUB").unwrap().stub);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_meanwhile_is_heard_in_its_order() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let control = bench.simulator.control();
    control.zombie("main", switchboard::simulator::Zombie::default()).unwrap();
    control.write("main", ANN, Writing::text("first").id("LATE")).unwrap();
    control.edit("main", "LATE", "second").unwrap();
    assert!(control.conversation("main").unwrap().chats.is_empty());
    control.revive("main").unwrap();
    assert_eq!(first(&bench, "message.edited").await["body"], "second");
    assert_eq!(told(&bench, "message", "LATE").await["body"], "first");
    assert_eq!(control.conversation("main").unwrap().message("LATE").unwrap().edits, 1);

    control.write("main", ANN, Writing::text("nobody tells").silently().id("SILENT")).unwrap();
    control.read_on_phone("main", ANN).unwrap();
    let read = bench.receiver.wait("own read", |hook| hook.ack_of("LATE") == Some(3)).await;
    assert_eq!(read.body["payload"]["fromMe"], false);
    assert!(bench.receiver.seen().iter().all(|hook| hook.body["payload"]["body"] != "nobody tells"));
    let page: Value = bench.get("/api/main/chats/all/messages?filter.fromMe=false").await.json().await.unwrap();
    assert_eq!(page[0]["body"], "nobody tells");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_answer_without_ever_acknowledging() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    for (number, acks) in [("15550100010", vec![1]), ("15550100011", vec![])] {
        let id = format!("3EB0{number}");
        bench.send("main", number, "hello", &id).await;
        let from = format!("{number}@c.us");
        bench.receiver.wait("a reply", |hook| hook.event() == "message" && hook.body["payload"]["from"] == from).await;
        let told: Vec<i64> = bench.receiver.seen().iter().filter_map(|hook| hook.ack_of(&id)).collect();
        assert_eq!(told, acks, "{number}");
    }
}
