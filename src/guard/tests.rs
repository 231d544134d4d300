//! Every range, from its first to its last address, and the public neighbours.

use super::*;

fn check(text: &str, allow_private: bool) -> Result<(), GuardError> {
    Guard::new(allow_private).check_url(&Url::parse(text).unwrap())
}

#[test]
fn every_special_range_is_refused_from_end_to_end() {
    let ranges = [
        ("0.0.0.0", "0.255.255.255"),
        ("10.0.0.0", "10.255.255.255"),
        ("100.64.0.0", "100.127.255.255"),
        ("127.0.0.0", "127.255.255.255"),
        ("169.254.0.0", "169.254.255.255"),
        ("172.16.0.0", "172.31.255.255"),
        ("192.0.0.0", "192.0.0.255"),
        ("192.0.2.0", "192.0.2.255"),
        ("192.88.99.0", "192.88.99.255"),
        ("192.168.0.0", "192.168.255.255"),
        ("198.18.0.0", "198.19.255.255"),
        ("198.51.100.0", "198.51.100.255"),
        ("203.0.113.0", "203.0.113.255"),
        ("224.0.0.0", "239.255.255.255"),
        ("240.0.0.0", "255.255.255.255"),
        ("::", "::1"),
        ("::7f00:1", "::ffff"),
        ("64:ff9b::", "64:ff9b::ffff:ffff"),
        ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"),
        ("100::", "100::ffff:ffff:ffff:ffff"),
        ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ];
    for (first, last) in ranges {
        for address in [first, last] {
            let address: IpAddr = address.parse().unwrap();
            assert!(!is_public(address), "{address}");
            if let IpAddr::V4(address) = address {
                assert!(!is_public(address.to_ipv6_mapped().into()), "mapped {address}");
            }
        }
    }
}

#[test]
fn their_neighbours_are_public() {
    let public = [
        "1.0.0.0",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.3.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "::ffff:8.8.8.8",
        "2000::",
        "2001:200::",
        "2001:db7:ffff::",
        "2001:db9::",
        "2003::",
        "2606:4700::1111",
        "3ffe:ffff::",
    ];
    for address in public {
        assert!(is_public(address.parse().unwrap()), "{address}");
    }
}

#[test]
fn urls() {
    use GuardError::{NotPublic, Port, Scheme, UserInfo};
    let cases = [
        ("https://hooks.example.com/a?b=c#d", Ok(())),
        ("https://hooks.example.com:8443/", Ok(())),
        ("https://8.8.8.8/", Ok(())),
        ("https://[2606:4700::1111]/", Ok(())),
        ("http://hooks.example.com/", Err(Scheme)),
        ("ftp://hooks.example.com/", Err(Scheme)),
        ("file:///etc/passwd", Err(Scheme)),
        ("https://user@hooks.example.com/", Err(UserInfo)),
        ("https://user:pw@hooks.example.com/", Err(UserInfo)),
        ("https://:pw@hooks.example.com/", Err(UserInfo)),
        ("https://hooks.example.com:25/", Err(Port)),
        ("https://hooks.example.com:0/", Err(Port)),
        ("https://hooks.example.com:6667/", Err(Port)),
        ("https://127.0.0.1/", Err(NotPublic)),
        ("https://2130706433/", Err(NotPublic)),
        ("https://0x7f000001/", Err(NotPublic)),
        ("https://0177.0.0.1/", Err(NotPublic)),
        ("https://0x7f.1/", Err(NotPublic)),
        ("https://127.1/", Err(NotPublic)),
        ("https://127.0.0.1./", Err(NotPublic)),
        ("https://１２７.0.0.1/", Err(NotPublic)),
        ("https://169.254.169.254/latest/meta-data", Err(NotPublic)),
        ("https://[::1]/", Err(NotPublic)),
        ("https://[::ffff:10.0.0.1]/", Err(NotPublic)),
        ("https://[::ffff:a00:1]/", Err(NotPublic)),
        ("https://[64:ff9b::a00:1]/", Err(NotPublic)),
        ("https://[fd00::1]/", Err(NotPublic)),
        ("https://localhost/", Err(NotPublic)),
        ("https://LOCALHOST./", Err(NotPublic)),
        ("https://a.localhost/", Err(NotPublic)),
    ];
    for (url, expected) in cases {
        assert_eq!(check(url, false), expected, "{url}");
    }
    let long = format!("https://hooks.example.com/{}", "a".repeat(2048 - 26));
    assert_eq!(check(&long, false), Ok(()));
    assert_eq!(check(&format!("{long}a"), false), Err(GuardError::TooLong));
}

#[test]
fn development_may_call_private_addresses_and_plain_http() {
    let cases = [
        ("http://localhost:3000/", Ok(())),
        ("http://127.0.0.1:3000/", Ok(())),
        ("https://[fd00::1]/", Ok(())),
        ("http://user@localhost/", Err(GuardError::UserInfo)),
        ("http://localhost:25/", Err(GuardError::Port)),
        ("ftp://localhost/", Err(GuardError::Scheme)),
    ];
    for (url, expected) in cases {
        assert_eq!(check(url, true), expected, "{url}");
    }
}

#[test]
fn of_a_mixed_answer_only_public_addresses_remain() {
    let found = ["10.0.0.1:0", "8.8.8.8:0", "[::1]:0", "[::ffff:127.0.0.1]:0"].map(|address| address.parse().unwrap());
    let admitted = Guard::new(false).admit(found.into_iter()).unwrap();
    assert_eq!(admitted, ["8.8.8.8:0".parse().unwrap()]);
    assert_eq!(Guard::new(true).admit(found.into_iter()).unwrap().len(), 4);
    assert_eq!(Guard::new(false).admit(std::iter::empty()), Err(GuardError::NotPublic));
}

#[tokio::test]
async fn names_of_private_addresses_do_not_resolve() {
    let resolve = |allow_private| Guard::new(allow_private).resolver().resolve("localhost".parse().unwrap());
    let refusal = resolve(false).await.err().unwrap();
    assert_eq!(refusal.downcast_ref::<GuardError>(), Some(&GuardError::NotPublic));
    assert!(resolve(true).await.unwrap().next().is_some());
}
