//! Data as a kubeadm cluster leaves it in etcd.
//!
//! Built-in types are stored as the apiserver does: `k8s\0`, then a protobuf `runtime.Unknown` with the type, and an object whose
//! metadata holds name, namespace and uid in their real field numbers. Custom resources, CRDs and API services are JSON. What an
//! object says beyond that is made up.

use super::kubernetes::Kubernetes;
use super::{Series, wait};
use etcd_client::{Client, CompactionOptions, PutOptions, Txn, TxnOp};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::task::JoinSet;

/// The `MongoDB` password in the Secret of [`homelab`]: it must not be found anywhere outside sealed files.
pub const SECRET: &str = "canary-mongo-Zx81-root-password";

/// The first user's namespaces, and those that every cluster has.
pub const NAMESPACES: [&str; 6] =
    ["default", "ingress-nginx", "kube-system", "monitoring", "kube-node-lease", "kube-public"];

/// What the fill left behind.
#[derive(Clone, Copy, Debug)]
pub struct Filled {
    /// The cluster's revision after the last write.
    pub revision: i64,
    /// The revision that was compacted; 0 if none was.
    pub compacted: i64,
}

/// The first user's cluster: some 500 live keys, with history, deletes, leases and one compaction.
pub fn homelab(client: &Client) -> Filled {
    let client = client.clone();
    wait(write_homelab(client))
}

/// About so many MB (of 1,000,000 bytes) of objects that compress as real ones do, between 3:1 and 4:1 with zstd -3.
pub fn bulk(client: &Client, megabytes: usize) -> Filled {
    many(client, "/registry/pods/bulk", megabytes, Arc::new(manifest))
}

/// About so many MB of random bytes, which no compressor makes smaller.
pub fn incompressible(client: &Client, megabytes: usize) -> Filled {
    many(client, "/registry/secrets/noise", megabytes, Arc::new(|n| Noise::new(n).bytes(OBJECT)))
}

/// Objects as a Kubernetes cluster of some size keeps them; see there.
pub fn kubernetes(client: &Client, profile: Kubernetes) -> Filled {
    wait(super::kubernetes::write(client.clone(), profile))
}

/// What members should be started with before a big fill: else each keeps the last transactions in memory, thousands of them and of half a
/// megabyte each.
pub fn big_fill_args(series: Series) -> Vec<String> {
    let catch_up = match series {
        Series::V3_4 => None,
        Series::V3_5 => Some("--experimental-snapshot-catchup-entries=50"),
        Series::V3_6 => Some("--snapshot-catchup-entries=50"),
    };
    catch_up.into_iter().chain(["--snapshot-count=200"]).map(str::to_owned).collect()
}

/// One object of the big fills.
const OBJECT: usize = 8_000;
/// Objects in a transaction: etcd takes 128 operations and 1.5 MiB.
const TOGETHER: usize = 64;
const WRITERS: usize = 6;

type Make = Arc<dyn Fn(u64) -> Vec<u8> + Send + Sync>;

fn many(client: &Client, prefix: &'static str, megabytes: usize, make: Make) -> Filled {
    let client = client.clone();
    wait(async move {
        let transactions = (megabytes * 1_000_000).div_ceil(OBJECT * TOGETHER);
        let next = Arc::new(AtomicUsize::new(0));
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            let (mut client, next, make) = (client.clone(), Arc::clone(&next), Arc::clone(&make));
            writers.spawn(async move {
                let mut revision = 0;
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= transactions {
                        return revision;
                    }
                    let puts: Vec<TxnOp> = (n * TOGETHER..(n + 1) * TOGETHER)
                        .map(|i| TxnOp::put(format!("{prefix}/object-{i:08}"), make(i as u64), None))
                        .collect();
                    let answer = client.txn(Txn::new().and_then(puts)).await.expect("a transaction of puts");
                    revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
                }
            });
        }
        let revision = writers.join_all().await.into_iter().max().unwrap_or(0);
        Filled { revision, compacted: 0 }
    })
}

/// An object of a big fill: mostly words that every object has, and a fair part that only this one has (uids, digests,
/// certificates in base64), as in the objects of a real cluster.
fn manifest(n: u64) -> Vec<u8> {
    stored("v1", "Pod", "bulk", &format!("object-{n:08}"), &prose(&mut Noise::new(n), OBJECT - 400))
}

/// At least so many bytes of an object's text, the last line whole.
pub(super) fn prose(noise: &mut Noise, bytes: usize) -> Vec<u8> {
    const LINES: [&str; 8] = [
        "f:metadata f:labels f:app.kubernetes.io/name f:app.kubernetes.io/instance f:pod-template-hash",
        "containers name image imagePullPolicy IfNotPresent ports containerPort protocol TCP resources limits cpu memory",
        "livenessProbe httpGet path /healthz port scheme HTTP initialDelaySeconds periodSeconds failureThreshold",
        "volumeMounts name kube-api-access mountPath /var/run/secrets/kubernetes.io/serviceaccount readOnly true",
        "tolerations key node.kubernetes.io/not-ready operator Exists effect NoExecute tolerationSeconds 300",
        "conditions type Ready status True lastProbeTime null lastTransitionTime reason message",
        "env name MONGODB_URI valueFrom secretKeyRef name mongodb key connection-string optional false",
        "ownerReferences apiVersion apps/v1 kind ReplicaSet controller true blockOwnerDeletion true",
    ];
    let mut text = String::with_capacity(bytes + 300);
    while text.len() < bytes {
        let line = noise.below(LINES.len());
        text.push_str(LINES[line]);
        text.push_str(" sha256:");
        text.push_str(&noise.hex(28));
        text.push(' ');
        text.push_str(&noise.hex(20));
        text.push('\n');
    }
    text.into_bytes()
}

/// A stored built-in object.
pub(super) fn stored(api_version: &str, kind: &str, namespace: &str, name: &str, spec: &[u8]) -> Vec<u8> {
    let mut noise =
        Noise::new(name.bytes().fold(kind.len() as u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b))));
    let mut meta = field(1, name.as_bytes());
    if !namespace.is_empty() {
        meta.extend(field(3, namespace.as_bytes()));
    }
    meta.extend(field(5, noise.uid().as_bytes()));
    let mut object = field(1, &meta);
    object.extend(field(2, spec));
    let mut of_type = field(1, api_version.as_bytes());
    of_type.extend(field(2, kind.as_bytes()));
    let mut value = b"k8s\0".to_vec();
    value.extend(field(1, &of_type));
    value.extend(field(2, &object));
    value.extend(field(3, b""));
    value.extend(field(4, b""));
    value
}

/// A protobuf field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut rest = bytes.len();
    while rest >= 0x80 {
        out.push(u8::try_from(rest & 0x7f).expect("seven bits") | 0x80);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).expect("seven bits"));
    out.extend_from_slice(bytes);
    out
}

/// A stored custom resource, CRD or API service.
pub(super) fn json(api_version: &str, kind: &str, namespace: &str, name: &str) -> Vec<u8> {
    let uid = Noise::new(name.len() as u64 + 77).uid();
    let metadata = if namespace.is_empty() {
        serde_json::json!({ "name": name, "uid": uid, "generation": 1 })
    } else {
        serde_json::json!({ "name": name, "namespace": namespace, "uid": uid, "generation": 1 })
    };
    let value = serde_json::json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": { "note": "homelab" } });
    value.to_string().into_bytes()
}

/// Every object that stays, as key and value.
#[allow(clippy::too_many_lines, reason = "a list")]
fn objects() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let mut put = |resource: &str, api: &str, kind: &str, namespace: &str, name: &str, spec: &str| {
        let place = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
        all.push((format!("/registry/{resource}/{place}"), stored(api, kind, namespace, name, spec.as_bytes())));
    };
    for namespace in NAMESPACES {
        put("namespaces", "v1", "Namespace", "", namespace, "finalizers kubernetes phase Active");
        put("serviceaccounts", "v1", "ServiceAccount", namespace, "default", "");
        put(
            "configmaps",
            "v1",
            "ConfigMap",
            namespace,
            "kube-root-ca.crt",
            &format!("ca.crt {}", Noise::new(5).hex(600)),
        );
    }
    let workloads = [
        ("default", "deansie-wordle-backend", "registry.example.org/deansie/wordle-backend:1.8.2", 3),
        ("default", "deansie-wordle-frontend", "registry.example.org/deansie/wordle-frontend:1.8.2", 2),
        ("default", "kvikkjokk-nextjs", "registry.example.org/kvikkjokk/nextjs:0.31.0", 2),
        ("ingress-nginx", "ingress-nginx-controller", "registry.k8s.io/ingress-nginx/controller:v1.13.3", 2),
        ("kube-system", "coredns", "registry.k8s.io/coredns/coredns:v1.12.1", 2),
        ("monitoring", "grafana", "grafana/grafana:12.2.0", 1),
        ("monitoring", "kube-state-metrics", "registry.k8s.io/kube-state-metrics:v2.17.0", 1),
    ];
    for (namespace, name, image, replicas) in workloads {
        let set = format!("{name}-7d9c5b6f4d");
        put("deployments", "apps/v1", "Deployment", namespace, name, &format!("replicas {replicas} image {image}"));
        put("replicasets", "apps/v1", "ReplicaSet", namespace, &set, &format!("replicas {replicas} image {image}"));
        put("services/specs", "v1", "Service", namespace, name, "type ClusterIP port 80");
        put("services/endpoints", "v1", "Endpoints", namespace, name, "10.244.1.17 10.244.2.9");
        put(
            "endpointslices",
            "discovery.k8s.io/v1",
            "EndpointSlice",
            namespace,
            &format!("{name}-x7k2p"),
            "10.244.1.17",
        );
        for pod in 0..replicas {
            let pod = format!("{set}-{}", Noise::new(pod).hex(3));
            put("pods", "v1", "Pod", namespace, &pod, &format!("image {image} nodeName k8s-w1 phase Running"));
        }
    }
    put(
        "statefulsets",
        "apps/v1",
        "StatefulSet",
        "default",
        "mongodb",
        "replicas 3 image mongo:8.0 serviceName mongodb",
    );
    put("services/specs", "v1", "Service", "default", "mongodb", "clusterIP None port 27017");
    for i in 0..3 {
        put("pods", "v1", "Pod", "default", &format!("mongodb-{i}"), "image mongo:8.0 phase Running");
        put("persistentvolumeclaims", "v1", "PersistentVolumeClaim", "default", &format!("data-mongodb-{i}"), "10Gi");
        put("persistentvolumes", "v1", "PersistentVolume", "", &format!("pv-mongodb-{i}"), "10Gi nfs tank/mongodb");
    }
    put("secrets", "v1", "Secret", "default", "mongodb", &format!("mongodb-root-password {SECRET}"));
    put("secrets", "v1", "Secret", "default", "wordle-tls", &format!("tls.key {}", Noise::new(9).hex(900)));
    put("secrets", "v1", "Secret", "monitoring", "grafana-admin", "admin-password correct-horse");
    for host in ["wordle", "kvikkjokk", "grafana"] {
        let namespace = if host == "grafana" { "monitoring" } else { "default" };
        put("ingress", "networking.k8s.io/v1", "Ingress", namespace, host, &format!("host {host}.example.org"));
    }
    for name in ["coredns", "kubeadm-config", "kubelet-config", "kube-proxy", "extension-apiserver-authentication"] {
        put("configmaps", "v1", "ConfigMap", "kube-system", name, &format!("data {}", Noise::new(3).hex(400)));
    }
    for node in ["k8s", "k8s-cp2", "k8s-cp3", "k8s-w1", "k8s-w2"] {
        put("minions", "v1", "Node", "", node, "kubeletVersion v1.35.0 containerd 2.1.4");
        put("leases", "coordination.k8s.io/v1", "Lease", "kube-node-lease", node, "leaseDurationSeconds 40");
    }
    for name in ["kube-controller-manager", "kube-scheduler"] {
        put("leases", "coordination.k8s.io/v1", "Lease", "kube-system", name, "holderIdentity k8s_5a1c");
    }
    for i in 0..70 {
        put(
            "clusterroles",
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            "",
            &format!("system:role-{i:02}"),
            "get list watch",
        );
        let binding = format!("system:role-{i:02}");
        put(
            "clusterrolebindings",
            "rbac.authorization.k8s.io/v1",
            "ClusterRoleBinding",
            "",
            &binding,
            "system:masters",
        );
    }
    for i in 0..120 {
        put("configmaps", "v1", "ConfigMap", "monitoring", &format!("dashboard-{i:03}"), &Noise::new(i).hex(700));
    }
    put("ranges", "v1", "RangeAllocation", "", "serviceips", "10.96.0.0/12");
    for crd in ["certificates.cert-manager.io", "servicemonitors.monitoring.coreos.com"] {
        let key = format!("/registry/apiextensions.k8s.io/customresourcedefinitions/{crd}");
        all.push((key, json("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", crd)));
    }
    for name in ["v1.apps", "v1.", "v1.batch", "v1beta1.metrics.k8s.io"] {
        let key = format!("/registry/apiregistration.k8s.io/apiservices/{name}");
        all.push((key, json("apiregistration.k8s.io/v1", "APIService", "", name)));
    }
    for name in ["wordle", "kvikkjokk", "grafana"] {
        let key = format!("/registry/cert-manager.io/certificates/default/{name}");
        all.push((key, json("cert-manager.io/v1", "Certificate", "default", name)));
    }
    all
}

async fn write_homelab(mut client: Client) -> Filled {
    let all = objects();
    for some in all.chunks(TOGETHER) {
        let puts: Vec<TxnOp> = some.iter().map(|(k, v)| TxnOp::put(k.clone(), v.clone(), None)).collect();
        client.txn(Txn::new().and_then(puts)).await.expect("a transaction of puts");
    }
    // The apiserver keeps events for an hour and its own address for fifteen seconds (here longer, so that it stays).
    let hour = client.lease_grant(3600, None).await.expect("a lease").id();
    let address = client.lease_grant(900, None).await.expect("a lease").id();
    for i in 0..60 {
        let name = format!("mongodb-{}.{}", i % 3, Noise::new(i).hex(8));
        let key = format!("/registry/events/default/{name}");
        let value =
            stored("v1", "Event", "default", &name, b"reason BackOff message Back-off restarting failed container");
        client.put(key, value, Some(PutOptions::new().with_lease(hour))).await.expect("a put");
    }
    let own = stored("v1", "Endpoints", "", "192.0.2.11", b"192.0.2.11:6443");
    client
        .put("/registry/masterleases/192.0.2.11", own, Some(PutOptions::new().with_lease(address)))
        .await
        .expect("a put");

    // History below the compaction and above it: renewed leases, a scaled deployment, pods that came and went.
    let mut revision = 0;
    let mut compacted = 0;
    for round in 0..20_u64 {
        for name in ["kube-controller-manager", "kube-scheduler"] {
            let value =
                stored("coordination.k8s.io/v1", "Lease", "kube-system", name, format!("renewTime {round}").as_bytes());
            client.put(format!("/registry/leases/kube-system/{name}"), value, None).await.expect("a put");
        }
        let pod = format!("/registry/pods/default/kvikkjokk-nextjs-build-{round}");
        let value = stored("v1", "Pod", "default", &format!("kvikkjokk-nextjs-build-{round}"), b"phase Succeeded");
        client.put(pod.clone(), value, None).await.expect("a put");
        let deleted = client.delete(pod, None).await.expect("a delete");
        revision = deleted.header().map_or(0, etcd_client::ResponseHeader::revision);
        if round == 9 {
            client.compact(revision, Some(CompactionOptions::new().with_physical())).await.expect("a compaction");
            compacted = revision;
        }
    }
    Filled { revision, compacted }
}

/// Numbers that look random and are the same on every run (splitmix64).
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("below a usize")
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(n + 8);
        while out.len() < n {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(n);
        out
    }

    pub(super) fn hex(&mut self, bytes: usize) -> String {
        // Eight bytes at a time: the big fills are made of this, by a program that is not optimised.
        let mut out = String::with_capacity(bytes * 2 + 16);
        while out.len() < bytes * 2 {
            write!(out, "{:016x}", self.next().swap_bytes()).expect("a string");
        }
        out.truncate(bytes * 2);
        out
    }

    fn uid(&mut self) -> String {
        format!("{}-{}-4a{}-ab{}-{}", self.hex(4), self.hex(2), self.hex(1), self.hex(1), self.hex(6))
    }
}
