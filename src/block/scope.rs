//! Which topics an application may use: `allowedTopics`, `protectedTopics`, `publishingScopes`, `subscriptionScopes`.

use crate::component::Properties;

fn list(properties: &Properties, name: &str) -> Vec<String> {
    properties.get(name).unwrap_or_default().split(',').map(|t| t.replace(' ', "")).filter(|t| !t.is_empty()).collect()
}

/// `app1=t1,t2;app2=` for this application: its topics, or nothing when it has no entry.
fn entry(properties: &Properties, name: &str, app: &str) -> Option<Vec<String>> {
    properties.get(name)?.split(';').find_map(|part| {
        let part = part.replace(' ', "");
        let (who, topics) = part.split_once('=')?;
        (who == app).then(|| topics.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect())
    })
}

/// Whether the application may use the topic; `scopes` is the name of the property with its entries.
pub(super) fn allows(properties: &Properties, scopes: &str, app: &str, topic: &str) -> bool {
    let allowed = list(properties, "allowedTopics");
    if !allowed.is_empty() && !allowed.iter().any(|t| t == topic) {
        return false;
    }
    match entry(properties, scopes, app) {
        Some(topics) => topics.iter().any(|t| t == topic),
        None => !list(properties, "protectedTopics").iter().any(|t| t == topic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_pub_sub_scopes() {
        let p: Properties =
            [("allowedTopics", "a, b,c"), ("protectedTopics", "c"), ("publishingScopes", "app1=a;app2=;app3=c")].into_iter().collect();
        let may = |app, topic| allows(&p, "publishingScopes", app, topic);
        assert!(may("app1", "a") && !may("app1", "b") && !may("app2", "a") && may("app3", "c"));
        assert!(may("other", "b") && !may("other", "c") && !may("other", "x"));
    }
}
