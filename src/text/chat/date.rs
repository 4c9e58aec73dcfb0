//! Calendar dates for prompts: no time zone, no time of day, so that prompts change once a day and caches live.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// A day of the Gregorian calendar, 1970-01-01 or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    days_since_1970: u32,
}

impl Date {
    /// Today in UTC.
    pub fn today() -> Self {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { days_since_1970: u32::try_from(elapsed.as_secs() / 86_400).unwrap_or(0) }
    }

    /// The date written `YYYY-MM-DD`; `None` if there is no such day from 1970 to 9999.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-').map(|part| {
            let digits = !part.is_empty() && part.len() <= 4 && part.bytes().all(|b| b.is_ascii_digit());
            part.parse::<u32>().ok().filter(|_| digits)
        });
        let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
        if year < 1970 || month == 0 || month > 12 || day == 0 {
            return None;
        }
        let before = (1970..year).map(days_of_year).sum::<u32>();
        let days_since_1970 = before + (1..month).map(|m| days_of_month(year, m)).sum::<u32>() + day - 1;
        (day <= days_of_month(year, month)).then_some(Self { days_since_1970 })
    }

    /// Year, month (1–12), day (1–31), and day of the year (1–366).
    fn civil(self) -> (u32, u32, u32, u32) {
        let (mut year, mut rest) = (1970, self.days_since_1970);
        while rest >= days_of_year(year) {
            rest -= days_of_year(year);
            year += 1;
        }
        let of_year = rest + 1;
        let mut month = 1;
        while rest >= days_of_month(year, month) {
            rest -= days_of_month(year, month);
            month += 1;
        }
        (year, month, rest + 1, of_year)
    }

    /// The date in the form that C's `strftime` describes. The time of day is midnight; an unknown conversion stays as
    /// it is written.
    pub fn format(self, form: &str) -> String {
        let (year, month, day, of_year) = self.civil();
        let month_name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
        let day_name = DAYS.get(self.days_since_1970 as usize % 7).copied().unwrap_or_default();
        let mut out = String::with_capacity(form.len() + 8);
        let mut chars = form.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let unpadded = chars.next_if_eq(&'-').is_some();
            let width = if unpadded { 1 } else { 2 };
            // Writing to a string cannot fail.
            let _ = match chars.next() {
                Some('Y') => write!(out, "{year}"),
                Some('y') => write!(out, "{:0width$}", year % 100),
                Some('m') => write!(out, "{month:0width$}"),
                Some('d') => write!(out, "{day:0width$}"),
                Some('e') => write!(out, "{day:2}"),
                Some('j') => write!(out, "{of_year:03}"),
                Some('B') => out.write_str(month_name),
                Some('b' | 'h') => out.write_str(month_name.get(..3).unwrap_or_default()),
                Some('A') => out.write_str(day_name),
                Some('a') => out.write_str(day_name.get(..3).unwrap_or_default()),
                Some('F') => write!(out, "{year}-{month:02}-{day:02}"),
                Some('H' | 'M' | 'S') => out.write_str("00"),
                Some('%') | None => out.write_str("%"),
                Some(other) => write!(out, "%{}{other}", if unpadded { "-" } else { "" }),
            };
        }
        out
    }
}

impl std::fmt::Display for Date {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.format("%F"))
    }
}

fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_year(year: u32) -> u32 {
    365 + u32::from(is_leap(year))
}

fn days_of_month(year: u32, month: u32) -> u32 {
    match month {
        2 => 28 + u32::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_print_as_strftime_does() {
        let date = Date::parse("2025-06-08").unwrap();
        assert_eq!(date.to_string(), "2025-06-08");
        assert_eq!(
            date.format("%A %a, %d %B %b %Y %y %j %-d %e %H:%M%% %q %"),
            "Sunday Sun, 08 June Jun 2025 25 159 8  8 00:00% %q %"
        );
        assert_eq!(Date::parse("2024-02-29").unwrap().format("%j %a"), "060 Thu");
        assert_eq!(Date::parse("1970-01-01").unwrap().format("%F %a"), "1970-01-01 Thu");
        assert_eq!(Date::parse("2000-12-31").unwrap().format("%F %j"), "2000-12-31 366");
    }

    #[test]
    fn impossible_dates_are_refused() {
        for text in
            ["2025-02-29", "2025-13-01", "2025-00-01", "2025-01-00", "1969-12-31", "25-1", "", "2025-01-+1"]
        {
            assert_eq!(Date::parse(text), None, "{text}");
        }
        assert!(Date::today().to_string().as_str() >= "2025-01-01");
    }
}
