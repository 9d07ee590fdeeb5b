//! Wrong use is an error at the right place.

#[test]
fn wrong_use_is_reported() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass_*.rs");
    cases.compile_fail("tests/ui/fail_*.rs");
}
