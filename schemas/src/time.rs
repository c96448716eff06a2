//! Times as people and clients write them: RFC 3339 to milliseconds since the Unix epoch. The other way stands in
//! [`crate::envelope`]. A leap second counts as the first of the next minute; fractions finer than a millisecond are
//! cut.

/// Milliseconds since the Unix epoch of an RFC 3339 time; `None` if it is not one.
pub fn milliseconds(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let separators = [(4, b"-"), (7, b"-"), (13, b":"), (16, b":")];
    if !text.is_ascii() || separators.iter().any(|(at, byte)| bytes.get(*at) != Some(&byte[0])) {
        return None;
    }
    if !matches!(bytes.get(10)?, b'T' | b't' | b' ') {
        return None;
    }
    let (year, month, day) = (number(text, 0, 4)?, number(text, 5, 7)?, number(text, 8, 10)?);
    let (hour, minute, second) = (number(text, 11, 13)?, number(text, 14, 16)?, number(text, 17, 19)?);
    let in_range = (1..=12).contains(&month) && (1..=days_of(year, month)).contains(&day);
    if !in_range || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (fraction_ms, zone) = fraction(text.get(19..)?)?;
    let seconds = days_since_epoch(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some((seconds - offset_seconds(zone)?) * 1000 + fraction_ms)
}

fn number(text: &str, from: usize, to: usize) -> Option<i64> {
    let digits = text.get(from..to)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Reads `.123…` if there is one; the milliseconds, and what follows.
fn fraction(text: &str) -> Option<(i64, &str)> {
    let Some(rest) = text.strip_prefix('.') else { return Some((0, text)) };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return None;
    }
    let ms = rest.bytes().take(digits).chain(*b"000").take(3).fold(0, |ms, byte| ms * 10 + i64::from(byte - b'0'));
    Some((ms, &rest[digits..]))
}

/// `Z` or `+02:00`, in seconds east of UTC.
fn offset_seconds(zone: &str) -> Option<i64> {
    if zone == "Z" || zone == "z" {
        return Some(0);
    }
    let (hours, minutes) = (number(zone, 1, 3)?, number(zone, 4, 6)?);
    if zone.len() != 6 || zone.as_bytes()[3] != b':' || hours > 23 || minutes > 59 {
        return None;
    }
    match zone.as_bytes()[0] {
        b'+' => Some(hours * 3_600 + minutes * 60),
        b'-' => Some(-(hours * 3_600 + minutes * 60)),
        _ => None,
    }
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Civil date to days (Hinnant, "chrono-compatible low-level date algorithms").
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let y = year - i64::from(month <= 2);
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_is_read_and_nothing_else_is() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T00:00:00.123Z", Some(951_782_400_123)),
            ("2023-11-14T22:13:20Z", Some(1_700_000_000_000)),
            ("2023-11-15T00:13:20+02:00", Some(1_700_000_000_000)),
            ("2023-11-14 17:13:20.5-05:00", Some(1_700_000_000_500)),
            ("2016-12-31T23:59:60Z", Some(1_483_228_800_000)),
            ("1969-12-31T23:59:59.999999Z", Some(-1)),
            ("2023-02-29T00:00:00Z", None),
            ("2023-13-01T00:00:00Z", None),
            ("2023-11-14T24:00:00Z", None),
            ("2023-11-14T22:13:20", None),
            ("2023-11-14T22:13:20.Z", None),
            ("2023-11-14T22:13:20Zz", None),
            ("2023-11-14T22:13:20+0200", None),
            ("2023-11-14", None),
            ("+023-11-14T22:13:20Z", None),
            ("", None),
            ("2023-11-14T22:13:2٠Z", None),
        ] {
            assert_eq!(milliseconds(text), expected, "{text}");
        }
    }

    #[test]
    fn what_the_house_writes_it_reads_back() {
        for ms in (0..4_000_000_000_000).step_by(8_640_000_077) {
            assert_eq!(milliseconds(&crate::envelope::rfc3339(ms)), Some(ms));
        }
    }
}
