//! From the template's `:name` to the numbered placeholders of a database.
//!
//! A template is one statement that reads or changes rows: it begins with SELECT, INSERT, UPDATE, DELETE, MERGE or WITH.
//! Everything else is refused at start, above all what would end the local transaction that it runs in, and every form
//! that could bring a placeholder of the database's own past this check.
//!
//! Quoted text, quoted names, comments and `::` casts are passed over. Refused, because a reader cannot tell them apart
//! without knowing the database: `$`, `?`, `@` and `#` outside quotes, a backslash inside them, and a second statement.

/// Which placeholders a database wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `?1`, `?2`, ..
    Sqlite,
    /// `$1`, `$2`, ..
    Postgres,
    /// `?`, one for each time that a name stands there.
    Mariadb,
}

/// A statement with numbered placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// What the database gets.
    pub sql: String,
    /// The name behind each placeholder; number 1 stands first.
    pub names: Vec<String>,
    /// For MariaDB: where each placeholder stands in `sql`, in bytes.
    pub marks: Vec<usize>,
}

/// Numbers the placeholders of a template. The error says what to change, without the template's text.
pub fn number_placeholders(template: &str, dialect: Dialect) -> Result<Numbered, &'static str> {
    let template = template.trim().trim_end_matches(';').trim_end();
    let mut numbered = Numbered { sql: String::with_capacity(template.len()), names: Vec::new(), marks: Vec::new() };
    let mut words_seen = false;
    let mut rest = template;
    while let Some(c) = rest.chars().next() {
        let token = token_length(rest, c)?;
        let (text, behind) = rest.split_at(token);
        if !words_seen && c.is_ascii_alphabetic() {
            check_first_word(text)?;
            words_seen = true;
        }
        match text.strip_prefix(':').filter(|name| name.starts_with(is_name_start)) {
            Some(name) => numbered.push_placeholder(name, dialect),
            None => numbered.sql.push_str(text),
        }
        rest = behind;
    }
    if words_seen { Ok(numbered) } else { Err("the statement is empty") }
}

impl Numbered {
    fn push_placeholder(&mut self, name: &str, dialect: Dialect) {
        if dialect == Dialect::Mariadb {
            self.marks.push(self.sql.len());
            self.names.push(name.to_string());
            self.sql.push('?');
            return;
        }
        let known = self.names.iter().position(|n| n == name);
        let index = known.unwrap_or_else(|| {
            self.names.push(name.to_string());
            self.names.len() - 1
        });
        let sign = match dialect {
            Dialect::Sqlite | Dialect::Mariadb => '?',
            Dialect::Postgres => '$',
        };
        self.sql.push(sign);
        self.sql.push_str(&(index + 1).to_string());
    }
}

/// How many bytes of `rest`, which begins with `c`, belong together.
pub(crate) fn token_length(rest: &str, c: char) -> Result<usize, &'static str> {
    match c {
        '\'' | '"' => quoted_length(rest, c),
        '-' if rest.starts_with("--") => Ok(rest.find('\n').map_or(rest.len(), |end| end + 1)),
        '/' if rest.starts_with("/*!") || rest.starts_with("/*M!") => {
            Err("a comment begins with /*! or /*M!, which MariaDB and MySQL execute")
        }
        '/' if rest.starts_with("/*") => {
            // Behind its beginning: `/*/` is no whole comment. With the star of its end: in `/*/*/` another one begins.
            let end = 2 + rest[2..].find("*/").ok_or("a comment has no end")?;
            if rest[2..=end].contains("/*") {
                return Err("a comment stands inside a comment; databases disagree about where that ends");
            }
            Ok(end + 2)
        }
        ':' if rest.starts_with("::") => Ok(2),
        ':' => Ok(1 + name_length(&rest[1..])),
        ';' => Err("a second statement follows; write it as a step of its own"),
        '$' | '?' | '@' | '#' | '`' => Err("$, ?, @, # and ` must not stand outside quotes; write parameters as :name"),
        _ if is_name_start(c) => Ok(name_length(rest)),
        _ => Ok(c.len_utf8()),
    }
}

fn quoted_length(rest: &str, quote: char) -> Result<usize, &'static str> {
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => return Err("a backslash must not stand inside quotes; some databases escape with it"),
            _ if c != quote => {}
            // Doubled, the quote is part of the text.
            _ if chars.peek().is_some_and(|&(_, next)| next == quote) => {
                chars.next();
            }
            _ => return Ok(at + 1),
        }
    }
    Err("a quote has no end")
}

fn check_first_word(word: &str) -> Result<(), &'static str> {
    const ALLOWED: [&str; 6] = ["select", "insert", "update", "delete", "merge", "with"];
    if ALLOWED.iter().any(|allowed| word.eq_ignore_ascii_case(allowed)) {
        return Ok(());
    }
    Err("a step must begin with SELECT, INSERT, UPDATE, DELETE, MERGE or WITH")
}

fn name_length(text: &str) -> usize {
    text.find(|c| !is_name_start(c) && !char::is_ascii_digit(&c)).unwrap_or(text.len())
}

fn is_name_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(template: &str, dialect: Dialect) -> (String, Vec<String>) {
        let Numbered { sql, names, .. } = number_placeholders(template, dialect).unwrap();
        (sql, names)
    }

    #[test]
    fn names_become_numbers_in_the_order_they_are_met() {
        let template = "update t set a = :b_1, c = :txid where d = :b_1 and e between :from and :to;";
        let names = ["b_1", "txid", "from", "to"].map(str::to_string).to_vec();
        assert_eq!(
            numbered(template, Dialect::Sqlite),
            ("update t set a = ?1, c = ?2 where d = ?1 and e between ?3 and ?4".to_string(), names.clone())
        );
        assert_eq!(
            numbered(template, Dialect::Postgres),
            ("update t set a = $1, c = $2 where d = $1 and e between $3 and $4".to_string(), names)
        );
    }

    #[test]
    fn mariadb_gets_each_name_as_often_as_it_stands_there() {
        let numbered = number_placeholders("select :a, '?', :b, :a", Dialect::Mariadb).unwrap();
        assert_eq!(numbered.sql, "select ?, '?', ?, ?");
        assert_eq!(numbered.names, ["a", "b", "a"]);
        assert_eq!(numbered.marks, [7, 15, 18]);
    }

    #[test]
    fn quotes_comments_casts_and_slices_hold_no_parameters() {
        for text in [
            "select ':a', 'it''s :b', \":c\", '$1 ? @'",
            "select a::text, b[1:2], c[1:]",
            "select 1 -- :a ; ?\n + 1",
            "select /* :a ; $ */ 1",
            "select /*/ :a */ 1, /**/ 2",
            "select '\u{e9}:a' || x\u{e9}",
        ] {
            assert_eq!(numbered(text, Dialect::Postgres), (text.to_string(), vec![]), "{text}");
        }
        assert_eq!(
            numbered("select :a::timestamptz, ':a'", Dialect::Postgres),
            ("select $1::timestamptz, ':a'".to_string(), vec!["a".to_string()])
        );
        assert_eq!(numbered("-- why\nselect :a", Dialect::Sqlite).0, "-- why\nselect ?1");
        assert_eq!(numbered("select 1--\n,:a - :b / :c -- :d", Dialect::Sqlite).0, "select 1--\n,?1 - ?2 / ?3 -- :d");
    }

    #[test]
    fn what_could_leave_the_transaction_is_refused() {
        for refused in [
            "",
            " ; ",
            "-- only a comment",
            "commit",
            "ROLLBACK",
            "begin",
            "savepoint a",
            "release a",
            "prepare transaction 'x'",
            "set x = 1",
            "pragma synchronous = off",
            "attach 'x' as y",
            "select 1; commit",
            "select $1",
            "select ?",
            "select ?1",
            "select @a",
            "select #a",
            "select $tag$ :a $tag$",
            "select E'\\' :a '",
            "select '\\'",
            "select 'open",
            "select /* open",
            "select /* /* */ :a */",
            "select /*/ :a",
            "select /*/*/ :a",
            "select /*! :a */ 1",
            "select /*M!100000 1 */",
        ] {
            assert!(number_placeholders(refused, Dialect::Postgres).is_err(), "{refused}");
        }
    }
}
