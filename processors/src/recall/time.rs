//! The time that a question names ("in May", "on 7 July 2023"), and how well a memory's time fits it.
//!
//! Promises: English month names, days of the month and years of this century; read from the words alone, no clock. Leaves
//! out: "last week", which would need to know when the question is asked, and other languages.

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
/// Words before "may" that make it a month.
const BEFORE_MAY: [&str; 7] = ["in", "of", "on", "early", "late", "mid", "since"];
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// A day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    year: i32,
    month: u8,
    day: u8,
}

/// What a question says of time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asked {
    months: Vec<i64>,
    days: Vec<i64>,
    years: Vec<i64>,
}

impl Asked {
    /// Reads a question.
    pub fn of(text: &str) -> Asked {
        let lower = text.to_lowercase();
        let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let mut asked = Asked::default();
        for (place, word) in words.iter().enumerate() {
            let month = MONTHS.iter().position(|month| word == month || *word == &month[..3]);
            if let Some(month) = month {
                let before = place.checked_sub(1).map(|place| words[place]);
                let after = words.get(place + 1).copied();
                let dated = [before, after].into_iter().flatten().any(|word| day(word).is_some());
                if *word != "may" || dated || before.is_some_and(|word| BEFORE_MAY.contains(&word)) {
                    asked.months.push(month as i64 + 1);
                }
            }
            asked.days.extend(day(word));
            asked.years.extend(word.parse::<i64>().ok().filter(|year| (2000..2100).contains(year)));
        }
        asked
    }

    /// From 1 for the day that is named, over parts for its neighbourhood or its month, to 0.
    pub fn fits(&self, date: &Date) -> f32 {
        let (year, month, day) = (i64::from(date.year), i64::from(date.month), i64::from(date.day));
        let right_year = self.years.is_empty() || self.years.contains(&year);
        if self.months.is_empty() {
            return if self.years.contains(&year) { 0.2 } else { 0.0 };
        }
        if !self.months.contains(&month) || !right_year {
            // What happened at the end of a month is told at the beginning of the next.
            let last = if month == 1 { 12 } else { month - 1 };
            return if self.months.contains(&last) && day <= 10 { 0.3 } else { 0.0 };
        }
        let away = self.days.iter().map(|asked| day - asked);
        match away.clone().map(i64::abs).min() {
            None => 0.6,
            Some(0 | 1) => 1.0,
            Some(_) if away.into_iter().any(|days| (0..=7).contains(&days)) => 0.8,
            Some(_) => 0.3,
        }
    }
}

/// A day of a month: `7`, `7th`.
fn day(word: &str) -> Option<i64> {
    let digits = word.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let known = matches!(&word[digits.len()..], "" | "st" | "nd" | "rd" | "th");
    digits.parse().ok().filter(|day| known && (1..=31).contains(day) && digits.len() <= 2)
}

impl Date {
    /// The day of a time, in milliseconds since the Unix epoch, in UTC (Hinnant, "chrono-compatible low-level date
    /// algorithms").
    pub fn of(at: i64) -> Date {
        let z = at.div_euclid(DAY_MS) + 719_468;
        let era = z.div_euclid(146_097);
        let doe = z.rem_euclid(146_097);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let year = yoe + era * 400 + i64::from(month <= 2);
        Date { year: year as i32, month: month as u8, day: (doy - (153 * mp + 2) / 5 + 1) as u8 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_time_is_read_and_may_is_a_month_only_where_it_is_one() {
        let at = |text: &str| Date::of(schemas::time::milliseconds(text).unwrap());
        let asked = Asked::of("What did she paint on 7 May, 2023?");
        assert_eq!(asked, Asked { months: vec![5], days: vec![7], years: vec![2023] });
        assert_eq!(asked.fits(&at("2023-05-08T13:56:00Z")), 1.0);
        assert_eq!(asked.fits(&at("2023-05-14T00:00:00Z")), 0.8);
        assert_eq!(asked.fits(&at("2022-05-07T00:00:00Z")), 0.0);
        assert_eq!(Asked::of("May I ask when?"), Asked::default());
        assert_eq!(Asked::of("in Feb").fits(&at("2024-02-29T23:59:59Z")), 0.6);
        assert_eq!(Asked::of("in December").fits(&at("2024-01-03T00:00:00Z")), 0.3);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (text, expected) in
            [("1970-01-01", (1970, 1, 1)), ("2000-02-29", (2000, 2, 29)), ("1969-12-31", (1969, 12, 31))]
        {
            let (year, month, day) = expected;
            let found = Date::of(schemas::time::milliseconds(&format!("{text}T12:00:00Z")).unwrap());
            assert_eq!(found, Date { year, month, day });
        }
    }
}
