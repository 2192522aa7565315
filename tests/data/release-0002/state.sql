BEGIN TRANSACTION;
CREATE TABLE cursors (
	project TEXT NOT NULL, 
	name TEXT NOT NULL, 
	number BIGINT NOT NULL, 
	at DOUBLE NOT NULL, 
	PRIMARY KEY (project, name)
);
INSERT INTO "cursors" VALUES('small','watermark',0,1760001000.0);
CREATE TABLE leases (
	name TEXT NOT NULL, 
	holder TEXT NOT NULL, 
	fence BIGINT NOT NULL, 
	expires DOUBLE NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "leases" VALUES('rollout:small','controller-1',1,1760000040.0);
CREATE TABLE ledger (
	project TEXT NOT NULL, 
	seq BIGINT NOT NULL, 
	at DOUBLE NOT NULL, 
	kind TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	who TEXT NOT NULL, 
	why TEXT NOT NULL, 
	evidence TEXT NOT NULL, 
	prev TEXT NOT NULL, 
	hash TEXT NOT NULL, 
	PRIMARY KEY (project, seq)
);
INSERT INTO "ledger" VALUES('small',1,1760000004.0,'promoted','v1','mlops_ray','the first version: there is no champion to compare it with','{"run_id":"run1","sha256":"73b6674661af059237493c3e7219fef19966ed2b08cdfa82c18a422283de5cad"}','0000000000000000000000000000000000000000000000000000000000000000','1d58fd5dc4dc1d05a9c33d19a271557795dc102e48477e02f3e68119227aa189');
INSERT INTO "ledger" VALUES('small',2,1760000010.0,'rollout started','v2','ann','better on paper','{"against":1,"rollout":"small-v2-r1","run_id":"run2"}','1d58fd5dc4dc1d05a9c33d19a271557795dc102e48477e02f3e68119227aa189','a47b7b8264c02bb3f2174d2feb43957a4e743ce193a0d34d9a92c4e263ffab4e');
INSERT INTO "ledger" VALUES('small',3,1760000020.0,'rollout ramping at 0.1','v2','mlops_ray','log_loss passes','{"rollout":"small-v2-r1","state":{"phase":"ramping","reason":"","since":1760000020.0,"step":0}}','a47b7b8264c02bb3f2174d2feb43957a4e743ce193a0d34d9a92c4e263ffab4e','c91a3bafbf03df6dce88a2302b757c3e631130feed76d3c5b83f89a84f090bc3');
INSERT INTO "ledger" VALUES('small',4,1760090000.0,'rollout ramping at 0.5','v2','mlops_ray','log_loss passes','{"analysis":{"metrics":[{"name":"log_loss","verdict":"pass"}],"verdict":"pass"},"rollout":"small-v2-r1","state":{"phase":"ramping","reason":"","since":1760090000.0,"step":1}}','c91a3bafbf03df6dce88a2302b757c3e631130feed76d3c5b83f89a84f090bc3','715f22f37f98bed29d033ae9887b6e5a2503340fd23db3e54e475d25b5e2cf7f');
INSERT INTO "ledger" VALUES('small',5,1760001000.0,'rollout pause','v2','ben','holiday','{"rollout":"small-v2-r1","state":{"phase":"paused","reason":"operator","since":1760001000.0,"step":1}}','715f22f37f98bed29d033ae9887b6e5a2503340fd23db3e54e475d25b5e2cf7f','3be846ed18160eed8dec39a1038d3e92b2f5c983ca6d21beffbe2f325518824e');
INSERT INTO "ledger" VALUES('small',6,1760000005.0,'retrain decided','small-1','mlops_ray','x drifted','{}','3be846ed18160eed8dec39a1038d3e92b2f5c983ca6d21beffbe2f325518824e','1b885700e28399e9c2305570c41467495f33d4e15e24a88aebf93c218410f048');
CREATE TABLE mlops_ray_schema (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT mlops_ray_schema_pkc PRIMARY KEY (version_num)
);
INSERT INTO "mlops_ray_schema" VALUES('0002');
CREATE TABLE profiles (
	project TEXT NOT NULL, 
	block DOUBLE NOT NULL, 
	version BIGINT NOT NULL, 
	body TEXT NOT NULL, 
	PRIMARY KEY (project, block, version)
);
INSERT INTO "profiles" VALUES('small',1760000000.0,1,'{"n":10}');
CREATE TABLE project_secrets (
	project TEXT NOT NULL, 
	secret TEXT NOT NULL, 
	PRIMARY KEY (project)
);
INSERT INTO "project_secrets" VALUES('small','0000000000000000000000000000000000000000000000000000000000000000');
CREATE TABLE projects (
	name TEXT NOT NULL, 
	config_text TEXT NOT NULL, 
	config_sha256 TEXT NOT NULL, 
	updated DOUBLE NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "projects" VALUES('small','columns:
- dtype: string
  name: who
- dtype: timestamp
  name: at
- dtype: int
  name: late
- dtype: float
  name: x
  nullable: true
- dtype: int
  name: n
- dtype: bool
  name: flag
- dtype: string
  name: c
  nullable: true
- dtype: string
  name: d
event_time: at
features:
  categorical:
    columns:
    - c
    - d
  numeric:
    columns:
    - x
    - n
    - flag
key: who
project: small
search:
  candidates:
  - estimator: sklearn.linear_model.LogisticRegression
source:
  kind: csv
  path: rows.csv
target: late
task: binary
','6111b34496531e94b702d8d510ec8ef564cf2864c4dbc5bad9d7869153b1cdec',1760000000.0);
CREATE TABLE request_ids (
	project TEXT NOT NULL, 
	id TEXT NOT NULL, 
	owner TEXT NOT NULL, 
	number BIGINT NOT NULL, 
	at DOUBLE NOT NULL, 
	PRIMARY KEY (project, id)
);
CREATE TABLE retrains (
	id TEXT NOT NULL, 
	project TEXT NOT NULL, 
	"trigger" TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	decided DOUBLE NOT NULL, 
	submission_id TEXT NOT NULL, 
	status TEXT NOT NULL, 
	outcome TEXT NOT NULL, 
	updated DOUBLE NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "retrains" VALUES('small-1','small','drift','x drifted',1760000005.0,'retrain-small-1','succeeded','{"version":2}',1760000006.0);
CREATE TABLE rollouts (
	id TEXT NOT NULL, 
	project TEXT NOT NULL, 
	version BIGINT NOT NULL, 
	stable BIGINT NOT NULL, 
	"plan" TEXT NOT NULL, 
	state TEXT NOT NULL, 
	created DOUBLE NOT NULL, 
	ended DOUBLE, 
	PRIMARY KEY (id)
);
INSERT INTO "rollouts" VALUES('small-v2-r1','small',2,1,'{"alpha":0.05,"clip":0.01,"look_s":60.0,"margins":{"failures":0.01,"log_loss":0.02},"min_keys":100,"on_inconclusive":"rollback","shares":[0.1,0.5],"step_max_s":1209600.0,"step_min_s":86400.0}','{"phase":"paused","reason":"operator","since":1760001000.0,"step":1}',1760000010.0,NULL);
CREATE TABLE serving (
	project TEXT NOT NULL, 
	seq BIGINT NOT NULL, 
	fence BIGINT NOT NULL, 
	spec TEXT NOT NULL, 
	PRIMARY KEY (project)
);
INSERT INTO "serving" VALUES('small',2,0,'{"canary":2,"salt":"small-v2-r1","share":0.5,"stable":{"artifact":"ARTIFACT","sha256":"73b6674661af059237493c3e7219fef19966ed2b08cdfa82c18a422283de5cad","version":1},"warm":[]}');
CREATE TABLE tokens (
	project TEXT NOT NULL, 
	id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	sha256 TEXT NOT NULL, 
	roles TEXT NOT NULL, 
	created DOUBLE NOT NULL, 
	expires DOUBLE, 
	PRIMARY KEY (project, id)
);
INSERT INTO "tokens" VALUES('small','0123456789ab','ann','8f260a0b09492f0865d2387ee9805f861d6e1cc9be492de9a08a8b044eac1d87','approve',1760000000.0,NULL);
CREATE TABLE versions (
	project TEXT NOT NULL, 
	version BIGINT NOT NULL, 
	run_id TEXT NOT NULL, 
	artifact TEXT NOT NULL, 
	sha256 TEXT NOT NULL, 
	dataset TEXT NOT NULL, 
	status TEXT NOT NULL, 
	created DOUBLE NOT NULL, 
	tags TEXT NOT NULL, 
	PRIMARY KEY (project, version)
);
INSERT INTO "versions" VALUES('small',1,'run1','ARTIFACT','73b6674661af059237493c3e7219fef19966ed2b08cdfa82c18a422283de5cad','DATA@1','registered',1760000001.0,'{"engine":"onnx"}');
INSERT INTO "versions" VALUES('small',2,'run2','ARTIFACT','73b6674661af059237493c3e7219fef19966ed2b08cdfa82c18a422283de5cad','DATA@1','registered',1760000002.0,'{"engine":"onnx"}');
INSERT INTO "versions" VALUES('small',3,'run3','ARTIFACT','73b6674661af059237493c3e7219fef19966ed2b08cdfa82c18a422283de5cad','DATA@1','pending',1760000003.0,'{"engine":"onnx"}');
CREATE TABLE windows (
	project TEXT NOT NULL, 
	start DOUBLE NOT NULL, 
	"end" DOUBLE NOT NULL, 
	version BIGINT NOT NULL, 
	result TEXT NOT NULL, 
	PRIMARY KEY (project, start, "end", version)
);
INSERT INTO "windows" VALUES('small',1760000000.0,1760003600.0,1,'{"drift":{"alarm":true,"at":1760000000.0,"why":"x"}}');
CREATE UNIQUE INDEX one_open_rollouts ON rollouts (project) WHERE ended IS NULL;
CREATE UNIQUE INDEX one_open_retrains ON retrains (project) WHERE status IN ('decided', 'submitted');
CREATE INDEX request_ids_by_age ON request_ids (project, at);
COMMIT;
