//! What a number's text says, read without any arithmetic of the product's.

/// Sign, digits without zeros at either end, and the power of ten of the last digit. `None`: no number, or an exponent that no
/// amount has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exact {
    is_negative: bool,
    digits: String,
    exponent: i64,
}

impl Exact {
    pub fn read(text: &str) -> Option<Self> {
        let (is_negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        if all.is_empty() || !all.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let exponent = exponent.parse::<i64>().ok()?.checked_sub(fraction.len() as i64)?;
        let kept = all.trim_end_matches('0');
        let digits = kept.trim_start_matches('0').to_string();
        if digits.is_empty() {
            return Some(Self { is_negative: false, digits, exponent: 0 });
        }
        let exponent = exponent.checked_add((all.len() - kept.len()) as i64)?;
        Some(Self { is_negative, digits, exponent })
    }

    /// As many powers of ten larger.
    pub fn shifted(mut self, by: u32) -> Self {
        if !self.digits.is_empty() {
            self.exponent += i64::from(by);
        }
        self
    }
}
