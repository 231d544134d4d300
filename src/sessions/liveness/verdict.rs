//! What the signs say about a session: pure, so that a table can test it.

use chrono::{DateTime, TimeDelta, Utc};

/// What is thought of a session that says it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks against it.
    Healthy,
    /// Something is odd, and WhatsApp has not been asked yet or could not be asked.
    Suspect,
    /// It works in name only.
    Dead,
}

impl Verdict {
    /// The word in the database and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
        }
    }

    /// Reads the word of the database.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Healthy, Self::Suspect, Self::Dead].into_iter().find(|verdict| verdict.as_str() == name)
    }
}

/// What became of a question put to WhatsApp through the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// WhatsApp answered.
    Alive,
    /// It did not, and the WAHA server is well; why, in words.
    Silent(String),
    /// The question could not be put, which says nothing about the session; why, in words.
    Unasked(String),
}

/// What is known of a session that is working and wanted.
#[derive(Clone, Debug)]
pub struct Vitals {
    /// Since when it works without a break, as far as was counted.
    pub watched_since: DateTime<Utc>,
    /// When it was paired.
    pub paired_at: Option<DateTime<Utc>>,
    /// When something last came from WhatsApp.
    pub last_sign_at: Option<DateTime<Utc>>,
    /// Since when signs have been counted.
    pub first_sign_at: Option<DateTime<Utc>>,
    /// How many there were, to the minute.
    pub signs: i32,
    /// The longest time between two signs, faded by half in a week.
    pub longest_gap: TimeDelta,
    /// Messages in a row that WhatsApp's server did not acknowledge.
    pub unacked: i32,
    /// How many of those mean that sends are stuck.
    pub stuck_after: i32,
    /// Messages in a row of which WAHA did not say what became of them.
    pub failed_calls: i32,
    /// What was thought of it so far.
    pub verdict: Verdict,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Why.
    pub evidence: Vec<String>,
    /// The answer to a question put just now.
    pub answer: Option<Answer>,
    /// Questions in a row that were not answered, with this one.
    pub failed_probes: i32,
    /// When it was last restarted because it was stuck or dead.
    pub restarted_at: Option<DateTime<Utc>>,
    /// When its death was reported.
    pub reported_at: Option<DateTime<Utc>>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// WhatsApp is asked.
    Probe,
    /// The session is restarted.
    Restart,
    /// The tenant is told that it is dead.
    Report,
}

/// A verdict with its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What is thought of it now.
    pub verdict: Verdict,
    /// Why, in plain words; empty for a healthy one.
    pub evidence: Vec<String>,
    /// What is to be done.
    pub step: Step,
    /// When it is looked at next, unless something happens before.
    pub look_at: DateTime<Utc>,
}

/// A healthy session is looked at so often.
const EVERY: TimeDelta = TimeDelta::minutes(5);
/// One that is quiet and was found alive, at least so often.
const SELDOM: TimeDelta = TimeDelta::hours(6);
/// One that is suspect or being restarted, so often.
const SOON: TimeDelta = TimeDelta::seconds(30);
/// One that is reported, so often.
const REPORTED: TimeDelta = TimeDelta::minutes(10);
/// Nothing is done so soon after pairing: some engines lose what they have not stored yet.
const AFTER_PAIRING: TimeDelta = TimeDelta::minutes(2);
/// What a restart may take before it is judged.
const GRACE: TimeDelta = TimeDelta::minutes(3);
/// A restart this short a while before the death was noticed is the one restart: it did not help.
const SHARED: TimeDelta = TimeDelta::minutes(10);
/// A session with less of a past has no measure of silence.
const FEWEST_SIGNS: i32 = 20;
const SHORTEST_PAST: TimeDelta = TimeDelta::hours(24);
/// Silence shorter than this is never odd.
const SHORTEST_SILENCE: TimeDelta = TimeDelta::minutes(30);
/// Unanswered questions in a row that make a death; one may be bad luck.
const PROBES: i32 = 2;
/// Messages in a row of unknown outcome that are odd.
const FAILED_CALLS: i32 = 3;

/// Judges a session that is working and wanted.
#[must_use]
pub fn judge(vitals: &Vitals, now: DateTime<Utc>) -> Judgement {
    let rest = |verdict, evidence, pause| Judgement { verdict, evidence, step: Step::Rest, look_at: now + pause };
    if let Some(paired) = vitals.paired_at.filter(|paired| now - *paired < AFTER_PAIRING) {
        return rest(vitals.verdict, vitals.evidence.clone(), paired + AFTER_PAIRING - now);
    }
    if vitals.verdict == Verdict::Dead {
        return judge_dead(vitals, now);
    }
    let mut evidence = signals(vitals, now);
    if evidence.is_empty() {
        return rest(Verdict::Healthy, evidence, EVERY);
    }
    let stuck = vitals.unacked >= vitals.stuck_after;
    match &vitals.answer {
        None => Judgement { verdict: Verdict::Suspect, evidence, step: Step::Probe, look_at: now + SOON },
        Some(Answer::Alive) if stuck => {
            evidence.push("WhatsApp answers questions, but takes no messages".to_owned());
            dead(vitals, now, evidence)
        }
        // It lives and is quiet; the longer it is, the less often that is asked.
        Some(Answer::Alive) => {
            rest(Verdict::Healthy, Vec::new(), silence(vitals, now).map_or(EVERY, |quiet| (quiet / 2).min(SELDOM)))
        }
        Some(Answer::Unasked(why)) => {
            evidence.push(format!("WhatsApp could not be asked: {why}"));
            rest(Verdict::Suspect, evidence, SOON * 2)
        }
        Some(Answer::Silent(why)) => {
            evidence.push(unanswered(vitals.failed_probes, why));
            if vitals.failed_probes < PROBES {
                rest(Verdict::Suspect, evidence, SOON)
            } else {
                dead(vitals, now, evidence)
            }
        }
    }
}

/// It is dead as of now. What was restarted a short while ago is not restarted again, but asked once more first.
fn dead(vitals: &Vitals, now: DateTime<Utc>, evidence: Vec<String>) -> Judgement {
    let (step, look_at) = match vitals.restarted_at.filter(|at| *at > now - SHARED) {
        None => (Step::Restart, now + GRACE),
        Some(at) => (Step::Rest, (at + GRACE).max(now + SOON)),
    };
    Judgement { verdict: Verdict::Dead, evidence, step, look_at }
}

fn judge_dead(vitals: &Vitals, now: DateTime<Utc>) -> Judgement {
    let judged = |evidence, step, pause| Judgement { verdict: Verdict::Dead, evidence, step, look_at: now + pause };
    let healthy = Judgement { verdict: Verdict::Healthy, evidence: Vec::new(), step: Step::Rest, look_at: now + EVERY };
    let stuck = vitals.unacked >= vitals.stuck_after;
    if !stuck && vitals.last_sign_at.is_some_and(|sign| sign > vitals.since) {
        return healthy;
    }
    // What it died of stays the evidence; what was tried since is added when it is reported.
    let mut evidence = vitals.evidence.clone();
    let Some(restarted) = vitals.restarted_at.filter(|at| *at > vitals.since - SHARED) else {
        return judged(evidence, Step::Restart, GRACE);
    };
    if now - restarted < GRACE {
        return Judgement { verdict: Verdict::Dead, evidence, step: Step::Rest, look_at: restarted + GRACE };
    }
    match &vitals.answer {
        None => judged(evidence, Step::Probe, SOON),
        Some(Answer::Alive) if !stuck => healthy,
        Some(Answer::Unasked(_)) => judged(evidence, Step::Rest, SOON * 2),
        Some(_) if vitals.reported_at.is_some() => judged(evidence, Step::Rest, REPORTED),
        Some(Answer::Silent(_)) if !stuck && vitals.failed_probes < PROBES => judged(evidence, Step::Rest, SOON),
        Some(answer) => {
            evidence.push(format!("restarted at {}", restarted.format("%Y-%m-%d %H:%M UTC")));
            evidence.push(match answer {
                Answer::Silent(why) => unanswered(vitals.failed_probes, why),
                _ => "WhatsApp answers questions, but still takes no messages".to_owned(),
            });
            judged(evidence, Step::Report, REPORTED)
        }
    }
}

/// What is odd, in words.
fn signals(vitals: &Vitals, now: DateTime<Utc>) -> Vec<String> {
    let mut signals = Vec::new();
    if let Some(quiet) = silence(vitals, now) {
        let longest = words(vitals.longest_gap);
        signals
            .push(format!("nothing came from WhatsApp for {}; the longest silence so far was {longest}", words(quiet)));
    }
    if vitals.unacked > 0 {
        signals.push(format!("{} in a row without an acknowledgement of WhatsApp's", messages(vitals.unacked)));
    }
    if vitals.failed_calls >= FAILED_CALLS {
        signals.push(format!("WAHA did not say what became of {} in a row", messages(vitals.failed_calls)));
    }
    signals
}

/// How long the session has been silent, where that is odd for it.
fn silence(vitals: &Vitals, now: DateTime<Utc>) -> Option<TimeDelta> {
    let (first, last) = vitals.first_sign_at.zip(vitals.last_sign_at)?;
    if vitals.signs < FEWEST_SIGNS || last - first < SHORTEST_PAST {
        return None;
    }
    let quiet = now - last.max(vitals.watched_since);
    (quiet > SHORTEST_SILENCE.max(vitals.longest_gap * 2)).then_some(quiet)
}

fn unanswered(times: i32, why: &str) -> String {
    match times {
        1 => format!("WhatsApp was asked through it and did not answer: {why}"),
        _ => format!("WhatsApp was asked through it {times} times and did not answer: {why}"),
    }
}

fn messages(count: i32) -> String {
    if count == 1 { "1 message".to_owned() } else { format!("{count} messages") }
}

fn words(time: TimeDelta) -> String {
    match (time.num_hours(), time.num_minutes()) {
        (48.., _) => format!("{} days", time.num_days()),
        (2.., _) => format!("{} hours", time.num_hours()),
        (_, minutes) => format!("{minutes} minutes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000, 0).unwrap()
    }

    fn ago(minutes: i64) -> DateTime<Utc> {
        now() - TimeDelta::minutes(minutes)
    }

    /// A session with a month of history that is never silent for longer than an hour.
    fn lively() -> Vitals {
        Vitals {
            watched_since: ago(60 * 24 * 30),
            paired_at: Some(ago(60 * 24 * 30)),
            last_sign_at: Some(ago(5)),
            first_sign_at: Some(ago(60 * 24 * 30)),
            signs: 9_000,
            longest_gap: TimeDelta::hours(1),
            unacked: 0,
            stuck_after: 3,
            failed_calls: 0,
            verdict: Verdict::Healthy,
            since: ago(60 * 24 * 30),
            evidence: Vec::new(),
            answer: None,
            failed_probes: 0,
            restarted_at: None,
            reported_at: None,
        }
    }

    fn silent() -> Answer {
        Answer::Silent("no answer in time".to_owned())
    }

    fn died(minutes: i64) -> Vitals {
        let evidence = vec!["it was silent".to_owned()];
        Vitals { verdict: Verdict::Dead, since: ago(minutes), evidence, last_sign_at: Some(ago(300)), ..lively() }
    }

    #[test]
    fn what_each_sign_leads_to() {
        use Step::{Probe, Report, Rest, Restart};
        use Verdict::{Dead, Healthy, Suspect};
        let quiet = || Vitals { last_sign_at: Some(ago(121)), ..lively() };
        let stuck = || Vitals { unacked: 3, ..lively() };
        let unasked = || Some(Answer::Unasked("the server is away".to_owned()));
        let table: Vec<(&str, Vitals, Verdict, Step)> = vec![
            ("all is well", lively(), Healthy, Rest),
            ("as quiet as ever", Vitals { last_sign_at: Some(ago(119)), ..lively() }, Healthy, Rest),
            ("twice as quiet as ever", quiet(), Suspect, Probe),
            ("too few signs to know", Vitals { signs: 19, ..quiet() }, Healthy, Rest),
            ("too short a past", Vitals { first_sign_at: Some(ago(121 + 60 * 23)), ..quiet() }, Healthy, Rest),
            ("never a sign", Vitals { first_sign_at: None, last_sign_at: None, signs: 0, ..lively() }, Healthy, Rest),
            (
                "chatty, and quiet for a moment",
                Vitals { longest_gap: TimeDelta::minutes(1), last_sign_at: Some(ago(29)), ..lively() },
                Healthy,
                Rest,
            ),
            (
                "chatty, and quiet",
                Vitals { longest_gap: TimeDelta::minutes(1), last_sign_at: Some(ago(31)), ..lively() },
                Suspect,
                Probe,
            ),
            ("quiet because it did not run", Vitals { watched_since: ago(10), ..quiet() }, Healthy, Rest),
            ("just paired", Vitals { paired_at: Some(ago(1)), ..quiet() }, Healthy, Rest),
            ("quiet and alive", Vitals { answer: Some(Answer::Alive), ..quiet() }, Healthy, Rest),
            ("quiet, and the server is away", Vitals { answer: unasked(), ..quiet() }, Suspect, Rest),
            ("no answer, once", Vitals { answer: Some(silent()), failed_probes: 1, ..quiet() }, Suspect, Rest),
            ("no answer, twice", Vitals { answer: Some(silent()), failed_probes: 2, ..quiet() }, Dead, Restart),
            (
                "no answer, but restarted a moment ago",
                Vitals { answer: Some(silent()), failed_probes: 2, restarted_at: Some(ago(5)), ..quiet() },
                Dead,
                Rest,
            ),
            ("one message without an ack", Vitals { unacked: 1, ..lively() }, Suspect, Probe),
            ("and alive", Vitals { unacked: 1, answer: Some(Answer::Alive), ..lively() }, Healthy, Rest),
            ("stuck", stuck(), Suspect, Probe),
            ("stuck although alive", Vitals { answer: Some(Answer::Alive), ..stuck() }, Dead, Restart),
            ("two calls failed", Vitals { failed_calls: 2, ..lively() }, Healthy, Rest),
            ("three calls failed", Vitals { failed_calls: 3, ..lively() }, Suspect, Probe),
            ("dead and not restarted yet", died(1), Dead, Restart),
            (
                "dead, its restart long before that death",
                Vitals { restarted_at: Some(ago(60)), ..died(1) },
                Dead,
                Restart,
            ),
            ("dead and being restarted", Vitals { restarted_at: Some(ago(2)), ..died(2) }, Dead, Rest),
            ("dead and restarted", Vitals { restarted_at: Some(ago(4)), ..died(4) }, Dead, Probe),
            ("restarted shortly before it was noticed", Vitals { restarted_at: Some(ago(10)), ..died(1) }, Dead, Probe),
            (
                "restarted and alive",
                Vitals { restarted_at: Some(ago(4)), answer: Some(Answer::Alive), ..died(4) },
                Healthy,
                Rest,
            ),
            (
                "restarted, and something came in",
                Vitals { restarted_at: Some(ago(2)), last_sign_at: Some(ago(1)), ..died(2) },
                Healthy,
                Rest,
            ),
            (
                "restarted, no answer once",
                Vitals { restarted_at: Some(ago(4)), answer: Some(silent()), failed_probes: 1, ..died(4) },
                Dead,
                Rest,
            ),
            (
                "restarted, no answer twice",
                Vitals { restarted_at: Some(ago(5)), answer: Some(silent()), failed_probes: 2, ..died(5) },
                Dead,
                Report,
            ),
            (
                "restarted, the server away",
                Vitals { restarted_at: Some(ago(5)), answer: unasked(), failed_probes: 2, ..died(5) },
                Dead,
                Rest,
            ),
            (
                "restarted and still stuck",
                Vitals { restarted_at: Some(ago(5)), answer: Some(Answer::Alive), unacked: 3, ..died(5) },
                Dead,
                Report,
            ),
            (
                "reported already",
                Vitals {
                    restarted_at: Some(ago(9)),
                    answer: Some(silent()),
                    failed_probes: 9,
                    reported_at: Some(ago(4)),
                    ..died(9)
                },
                Dead,
                Rest,
            ),
            (
                "reported and back",
                Vitals {
                    restarted_at: Some(ago(9)),
                    answer: Some(Answer::Alive),
                    reported_at: Some(ago(4)),
                    ..died(9)
                },
                Healthy,
                Rest,
            ),
        ];
        for (case, vitals, verdict, step) in table {
            let judged = judge(&vitals, now());
            assert_eq!((judged.verdict, judged.step), (verdict, step), "{case}: {judged:?}");
            assert!(judged.look_at > now(), "{case}: {judged:?}");
            assert_eq!(judged.evidence.is_empty(), verdict == Healthy, "{case}: {judged:?}");
        }
    }

    #[test]
    fn evidence_is_said_in_words() {
        let vitals = Vitals { last_sign_at: Some(ago(125)), unacked: 2, failed_calls: 4, ..lively() };
        assert_eq!(
            judge(&vitals, now()).evidence,
            [
                "nothing came from WhatsApp for 2 hours; the longest silence so far was 60 minutes",
                "2 messages in a row without an acknowledgement of WhatsApp's",
                "WAHA did not say what became of 4 messages in a row",
            ]
        );
    }

    #[test]
    fn who_is_quiet_and_alive_is_asked_less_and_less_often() {
        let asked = |minutes| {
            let vitals = Vitals { last_sign_at: Some(ago(minutes)), answer: Some(Answer::Alive), ..lively() };
            judge(&vitals, now()).look_at - now()
        };
        assert_eq!((asked(130), asked(600)), (TimeDelta::minutes(65), TimeDelta::minutes(300)));
    }
}
