PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO alembic_version VALUES('0002');
CREATE TABLE event (
	id INTEGER NOT NULL, 
	at VARCHAR(27) NOT NULL, 
	kind TEXT NOT NULL, 
	code TEXT, 
	message TEXT NOT NULL, 
	details JSON NOT NULL, previous_hash TEXT, row_hash TEXT, 
	CONSTRAINT pk_event PRIMARY KEY (id)
);
CREATE TABLE model (
	id TEXT NOT NULL, 
	card JSON NOT NULL, 
	simulated BOOLEAN NOT NULL, 
	registered_at VARCHAR(27) NOT NULL, 
	CONSTRAINT pk_model PRIMARY KEY (id)
);
INSERT INTO model VALUES('reference@4099066bd024','{"authors":"wbcd","changelog":{"0.1.0":"as trained"},"copyright":"Apache-2.0","data_source":"simulated refractive-index tomograms of wbcd","data_type":"safetensors","description":"3D fish network of width 16, trained on simulated tomograms","eval_metrics":{"knowing":{"test":{"accepted":0.9880208333333333,"cells":1920,"coverage":0.996875,"coverage_by_class":{"b_lymphocyte":1.0,"monocyte":0.99375,"myelocyte":0.9958333333333333,"t_lymphocyte":0.9979166666666667},"mean_set_size":1.0864583333333333},"test_donor":{"accepted":0.9850993377483444,"cells":2416,"coverage":0.9962748344370861,"coverage_by_class":{"b_lymphocyte":0.9950331125827815,"monocyte":0.9966887417218543,"myelocyte":0.9950331125827815,"t_lymphocyte":0.9983443708609272},"mean_set_size":1.0827814569536425}},"limits_from":{"cells":768,"command":"wbcd model calibrate four/bundle both.zarr four/calibrated --held-out limits.zarr --coverage 0.99 --objective-na 1.15 1.25 --wavelength-um 0.52 0.545 --pitch-um 0.05 0.21 --noise-ri 0 0.002 --backend openvino","data_hash":"478bbf7c0f6d41a1567d9259d875359780fcd52f","donors":20,"donors_seen":["simulated-1000","simulated-1001","simulated-1002","simulated-1003","simulated-1004","simulated-1005","simulated-1006","simulated-1007","simulated-1008","simulated-1009","simulated-1010","simulated-1011","simulated-1012","simulated-1013","simulated-1014","simulated-1015","simulated-1016","simulated-1017","simulated-1018","simulated-1019"],"note":"the range of noise was narrowed to 0.0015 afterwards, when its measure became an rms (docs/decisions/0056)"},"test":{"accuracy":0.9765625,"balanced_accuracy":0.9765625,"ci_high":0.9824379094661978,"ci_low":0.9687839241259432,"confusion_true_by_predicted":[[458,22,0,0],[16,464,0,0],[0,0,477,3],[0,0,4,476]],"expected_calibration_error":0.0056015959823289725,"n":1920,"parts":[{"accuracy":0.98,"ci_high":0.9857977622588703,"ci_low":0.9719028829965666,"n":1600,"part":"1: simulated (fast), seed 20261124","unclassified":0.009375000000000022},{"accuracy":0.959375,"ci_high":0.9761072671078657,"ci_low":0.9317443744658684,"n":320,"part":"2: simulated (exact), seed 20261128","unclassified":0.025000000000000022}],"recall":{"b_lymphocyte":0.9541666666666667,"monocyte":0.99375,"myelocyte":0.9916666666666667,"t_lymphocyte":0.9666666666666667}},"test_donor":{"accuracy":0.9768211920529801,"balanced_accuracy":0.9768211920529801,"ci_high":0.9821070981192569,"ci_low":0.9700213942667074,"confusion_true_by_predicted":[[579,25,0,0],[12,592,0,0],[0,0,602,2],[0,1,16,587]],"donor_ci_high":0.9814356435643564,"donor_ci_low":0.9718519669534224,"donors":8,"expected_calibration_error":0.008097488115202604,"n":2416,"parts":[{"accuracy":0.9805776892430279,"ci_high":0.9857598317904049,"ci_low":0.9735602933308519,"n":2008,"part":"1: simulated (fast), seed 20261124","unclassified":0.01344621513944222},{"accuracy":0.9583333333333334,"ci_high":0.9738251016617268,"ci_low":0.9342913397255661,"n":408,"part":"2: simulated (exact), seed 20261128","unclassified":0.022058823529411797}],"recall":{"b_lymphocyte":0.9586092715231788,"monocyte":0.9966887417218543,"myelocyte":0.9718543046357616,"t_lymphocyte":0.9801324503311258}}},"intended_use":"Research use only; not for diagnosis.","monai_version":"none (wbcd reads the section ''wbcd'')","network_data_format":{"inputs":{"image":{"channel_def":{"0":"max(0, (n - n_medium) * 9)"},"dtype":"float32","format":"refractive index","is_patch_data":false,"num_channels":1,"spatial_shape":[32,64,64],"type":"image","value_range":[0,2]}},"outputs":{"pred":{"channel_def":{"0":"b_lymphocyte","1":"t_lymphocyte","2":"monocyte","3":"myelocyte"},"dtype":"float32","format":"classes","is_patch_data":false,"num_channels":4,"spatial_shape":[],"type":"probabilities","value_range":[0,1]}}},"numpy_version":"2.4.6","pytorch_version":"2.13.0","references":["Ryu et al. 2021: label-free white blood cell classification using refractive index tomography"],"required_packages_version":{"safetensors":"0.8.0"},"schema":"https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json","task":"classification of white blood cells from refractive-index tomograms","version":"0.1.0","wbcd":{"architecture":{"arguments":{"classes":4,"views":4,"width":16},"name":"fishnet3d"},"bfloat16_proven_equal":false,"classes":["b_lymphocyte","t_lymphocyte","monocyte","myelocyte"],"conformal":{"coverage":0.99,"method":"lac","thresholds":[0.9838074678144426,0.9768496890664816,0.4797350780529429,0.9083065674740967]},"digests":{"model.safetensors":"5f68b86aab5a2cebe2747a79375ae0fd386e6511c3a17980de831c18f329a708"},"envelope":{"mean_delta_ri":[0.01941,0.04593],"volume_fl":[33.0,846.3]},"format_version":1,"input":{"axes":"zyx","medium_ri_rule":"subtract each cell''s own medium RI","normalisation":{"clip_below":0.0,"scale":9.0},"shape":[32,64,64],"voxel_um":[0.4,0.2,0.2]},"instrument":{"noise_ri":[0.0,0.0015],"objective_na":[1.15,1.25],"pitch_um":[0.05,0.21],"wavelength_um":[0.52,0.545]},"measured":{"knowing":{"test":{"accepted":0.9880208333333333,"cells":1920,"coverage":0.996875,"coverage_by_class":{"b_lymphocyte":1.0,"monocyte":0.99375,"myelocyte":0.9958333333333333,"t_lymphocyte":0.9979166666666667},"mean_set_size":1.0864583333333333},"test_donor":{"accepted":0.9850993377483444,"cells":2416,"coverage":0.9962748344370861,"coverage_by_class":{"b_lymphocyte":0.9950331125827815,"monocyte":0.9966887417218543,"myelocyte":0.9950331125827815,"t_lymphocyte":0.9983443708609272},"mean_set_size":1.0827814569536425}},"limits_from":{"cells":768,"command":"wbcd model calibrate four/bundle both.zarr four/calibrated --held-out limits.zarr --coverage 0.99 --objective-na 1.15 1.25 --wavelength-um 0.52 0.545 --pitch-um 0.05 0.21 --noise-ri 0 0.002 --backend openvino","data_hash":"478bbf7c0f6d41a1567d9259d875359780fcd52f","donors":20,"donors_seen":["simulated-1000","simulated-1001","simulated-1002","simulated-1003","simulated-1004","simulated-1005","simulated-1006","simulated-1007","simulated-1008","simulated-1009","simulated-1010","simulated-1011","simulated-1012","simulated-1013","simulated-1014","simulated-1015","simulated-1016","simulated-1017","simulated-1018","simulated-1019"],"note":"the range of noise was narrowed to 0.0015 afterwards, when its measure became an rms (docs/decisions/0056)"},"test":{"accuracy":0.9765625,"balanced_accuracy":0.9765625,"ci_high":0.9824379094661978,"ci_low":0.9687839241259432,"confusion_true_by_predicted":[[458,22,0,0],[16,464,0,0],[0,0,477,3],[0,0,4,476]],"expected_calibration_error":0.0056015959823289725,"n":1920,"parts":[{"accuracy":0.98,"ci_high":0.9857977622588703,"ci_low":0.9719028829965666,"n":1600,"part":"1: simulated (fast), seed 20261124","unclassified":0.009375000000000022},{"accuracy":0.959375,"ci_high":0.9761072671078657,"ci_low":0.9317443744658684,"n":320,"part":"2: simulated (exact), seed 20261128","unclassified":0.025000000000000022}],"recall":{"b_lymphocyte":0.9541666666666667,"monocyte":0.99375,"myelocyte":0.9916666666666667,"t_lymphocyte":0.9666666666666667}},"test_donor":{"accuracy":0.9768211920529801,"balanced_accuracy":0.9768211920529801,"ci_high":0.9821070981192569,"ci_low":0.9700213942667074,"confusion_true_by_predicted":[[579,25,0,0],[12,592,0,0],[0,0,602,2],[0,1,16,587]],"donor_ci_high":0.9814356435643564,"donor_ci_low":0.9718519669534224,"donors":8,"expected_calibration_error":0.008097488115202604,"n":2416,"parts":[{"accuracy":0.9805776892430279,"ci_high":0.9857598317904049,"ci_low":0.9735602933308519,"n":2008,"part":"1: simulated (fast), seed 20261124","unclassified":0.01344621513944222},{"accuracy":0.9583333333333334,"ci_high":0.9738251016617268,"ci_low":0.9342913397255661,"n":408,"part":"2: simulated (exact), seed 20261128","unclassified":0.022058823529411797}],"recall":{"b_lymphocyte":0.9586092715231788,"monocyte":0.9966887417218543,"myelocyte":0.9718543046357616,"t_lymphocyte":0.9801324503311258}}},"name":"reference","simulated":true,"temperature":0.5826666685350872,"training":{"augmentation":{"crop_um":0.0,"elastic_pitch_um":3.0,"elastic_um":0.1,"flip":true,"noise_ri":0.0006,"offset_ri":0.0002,"resampled":0.25,"rotate":true,"scale":0.005,"translation_um":0.4,"zoom":0.01},"batch":16,"best_epoch":4,"command":"wbcd train both.zarr four --start fine/bundle --learning-rate 4e-4 --epochs 4 --seed 0 --name reference","data":{"cells":12000,"donor_sd":{"density":0.01,"granularity":0.12,"medium_ri":0.0005,"volume":0.05},"donors":40,"joined":[{"cells":10000,"donors":40,"path":"fast","seed":20261124},{"cells":2000,"donors":40,"path":"exact","seed":20261128}],"optics":"425262d954021842de410d33b5e3c934","path":"joined","phantoms":"4e0e9a96d474bf86a5de0c62f6c811d7","recipe_id":"0b3129b4eeef8f8b","seed":20261124,"splits_of":{"cells":10000,"data_hash":"5ff3a4558cd20be4dc0349ea88e9a6f23d7ce425","donor_sd":{"density":0.01,"granularity":0.12,"medium_ri":0.0005,"volume":0.05},"donors":40,"optics":"425262d954021842de410d33b5e3c934","path":"fast","phantoms":"4e0e9a96d474bf86a5de0c62f6c811d7","recipe_id":"0b3129b4eeef8f8b","seed":20261124}},"data_hash":"9e384899b16eb916ac165c6d8e634c10429aca61","decay":null,"device":"cpu","donors_seen":["simulated-0","simulated-1","simulated-10","simulated-11","simulated-13","simulated-14","simulated-15","simulated-18","simulated-19","simulated-20","simulated-22","simulated-23","simulated-24","simulated-25","simulated-26","simulated-28","simulated-29","simulated-3","simulated-30","simulated-31","simulated-32","simulated-33","simulated-34","simulated-35","simulated-36","simulated-37","simulated-38","simulated-39","simulated-4","simulated-5","simulated-8","simulated-9"],"epochs":4,"joined_hashes":["5ff3a4558cd20be4dc0349ea88e9a6f23d7ce425","4e3041ca24dfe9e9752b5dfb5ab358d74c1a856c"],"label_smoothing":0.05,"learning_rate":0.0004,"optimizer":"adamw","parameters":1055220,"patience":0,"precision":"float32","preset":"modern","seed":0,"split_by":"both","start":{"command":"wbcd train ref.zarr four --epochs 12 --seed 0 --shape 32,64,64 --pitch 0.4,0.2,0.2 --name reference --device cuda","data":{"cells":10000,"donor_sd":{"density":0.01,"granularity":0.12,"medium_ri":0.0005,"volume":0.05},"donors":40,"optics":"425262d954021842de410d33b5e3c934","path":"fast","phantoms":"4e0e9a96d474bf86a5de0c62f6c811d7","recipe_id":"0b3129b4eeef8f8b","seed":20261124},"data_hash":"5ff3a4558cd20be4dc0349ea88e9a6f23d7ce425","device":"cuda","device_name":"NVIDIA H100 80GB HBM3","epochs":12,"learning_rate":0.004,"model_id":"reference@2452da4abe0b","note":"on its way to the device the set was rounded to steps of 4e-4 RI; limits and figures are of the set as it is","precision":"bfloat16","seed":0,"simulated":true,"split_by":"both","training_seconds":33.6},"task":"four","train_cells":6712,"training_seconds":1279.9,"validation_cells":952,"views":4,"warnings":["reference@2452da4abe0b, with whose weights this training began, was trained on, or chosen by, 796 of the 952 cells of ''validation''."],"weight_decay":0.02},"unknown":{"acceptance":0.99,"cells":768,"digest":"cde30c6c3a838451731292084351322cb8721edb038f7878b91f34b093a88c8d","threshold":17.96648494147655}}}',0,'2026-11-29T09:12:31.244661Z');
CREATE TABLE recipe (
	id TEXT NOT NULL, 
	parameters JSON NOT NULL, 
	wbcd_version TEXT NOT NULL, 
	registered_at VARCHAR(27) NOT NULL, 
	CONSTRAINT pk_recipe PRIMARY KEY (id)
);
INSERT INTO recipe VALUES('0b3129b4eeef8f8b','{"classification":{"min_probability":0.0},"morphology":{"crop_shape":[100,150,150],"crop_voxel_um":[0.2,0.1,0.1],"mass_rim_accurate_um":1.0,"mass_rim_um":0.2,"max_hole_fl":10.0,"min_object_fl":10.0,"ri_increment_ml_g":0.2,"support_margin_um":1.0,"threshold_ri":1.35},"quality":{"frame_quantile":0.9,"max_background_rms_rad":0.12,"max_focus_shift_um":5.0,"max_frame_residual":0.6,"max_frame_shift_um":0.2,"max_illumination_misfit":0.02,"max_instrument_drift":10.0,"max_lobes":1,"max_lost_frames":0.1,"max_mean_ri":1.45,"max_medium_offset_ri":0.004,"max_non_physical_fraction":0.001,"max_non_physical_voxels":0,"max_phase_residue_fraction":0.01,"max_repeated_frames":0.0,"max_residual":0.45,"max_ri":1.8,"max_saturated_fraction":0.01,"max_volume_fl":3000.0,"min_carrier_separation":2.95,"min_fringe_contrast":0.15,"min_kept_frames":4,"min_mean_ri":1.345,"min_ri":1.2,"min_sideband_separation":1.95,"min_sideband_snr":20.0,"min_solidity":0.55,"min_volume_fl":30.0},"reconstruction":{"default_medium_ri":1.337,"hold_out_every":8,"iterations":16,"mode":"fast","non_negative":true,"refinement_iterations":8,"refinement_tv":0.05,"refocus":true,"refocus_range_um":6.0,"shape":[100,150,150],"tv_weight":0.0,"voxel_um":[0.2,0.1,0.1]}}','0.1.0','2026-11-29T09:12:31.243739Z');
CREATE TABLE sample (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	first_seen_at VARCHAR(27) NOT NULL, 
	CONSTRAINT pk_sample PRIMARY KEY (id), 
	CONSTRAINT uq_sample_name UNIQUE (name)
);
INSERT INTO sample VALUES(1,'unassigned','2026-11-29T09:12:31.258183Z');
INSERT INTO sample VALUES(2,'donor-A','2026-11-29T09:12:32.445181Z');
CREATE TABLE source_file (
	path TEXT NOT NULL, 
	size_bytes BIGINT NOT NULL, 
	mtime_ns BIGINT NOT NULL, 
	content_id TEXT NOT NULL, 
	seen_at VARCHAR(27) NOT NULL, 
	CONSTRAINT pk_source_file PRIMARY KEY (path)
);
INSERT INTO source_file VALUES('in/donor-A-7-00000.TCF',865629,1795943537509715239,'158cada05de7d3f47de553ba14f90d5aab7e979c','2026-11-29T09:12:31.250968Z');
INSERT INTO source_file VALUES('in/donor-A-7-00001.TCF',884510,1795943539577715312,'18669e0b63d48cca73919fd7eb20dba47c1b4639','2026-11-29T09:12:32.460796Z');
INSERT INTO source_file VALUES('in/donor-A-7-00002.TCF',724091,1795943540773715355,'5337b04d3f1aaabedadbeaacd737f955c200090d','2026-11-29T09:12:33.269305Z');
INSERT INTO source_file VALUES('in/donor-A-7-00003.TCF',1750357,1795943546793715571,'3a2327f2b46fe9600ccfba01c5a87eb81467e34e','2026-11-29T09:12:33.848263Z');
CREATE TABLE acquisition (
	id INTEGER NOT NULL, 
	content_id TEXT NOT NULL, 
	sample_id INTEGER NOT NULL, 
	path TEXT NOT NULL, 
	size_bytes BIGINT NOT NULL, 
	mtime_ns BIGINT NOT NULL, 
	format TEXT, 
	instrument_acquisition_id TEXT, 
	acquired_at TEXT, 
	instrument_id TEXT, 
	medium_ri DOUBLE, 
	wavelength_um DOUBLE, 
	objective_na DOUBLE, 
	pixel_size_um DOUBLE, 
	time_points INTEGER NOT NULL, 
	tries INTEGER NOT NULL, 
	try_token TEXT, 
	begun_at VARCHAR(27), 
	first_seen_at VARCHAR(27) NOT NULL, 
	CONSTRAINT pk_acquisition PRIMARY KEY (id), 
	CONSTRAINT fk_acquisition_sample_id FOREIGN KEY(sample_id) REFERENCES sample (id), 
	CONSTRAINT uq_acquisition_content_id UNIQUE (content_id)
);
INSERT INTO acquisition VALUES(1,'158cada05de7d3f47de553ba14f90d5aab7e979c',2,'in/donor-A-7-00000.TCF',865629,1795943537509715239,'tcf','donor-A-7-00000','2024-01-08T08:00:00','SIM0001',1.3369999999999999662,0.53200000000000002842,1.1999999999999999555,0.10000000000000000555,1,0,'cddb77782c7a4132ad1fa869f20b6055','2026-11-29T09:12:31.258183Z','2026-11-29T09:12:31.258183Z');
INSERT INTO acquisition VALUES(2,'18669e0b63d48cca73919fd7eb20dba47c1b4639',2,'in/donor-A-7-00001.TCF',884510,1795943539577715312,'tcf','donor-A-7-00001','2024-01-08T08:00:05','SIM0001',1.3369999999999999662,0.53200000000000002842,1.1999999999999999555,0.10000000000000000555,1,0,'6e767fb581cb4a2c83ea4d202f8e0f00','2026-11-29T09:12:32.465719Z','2026-11-29T09:12:32.465719Z');
INSERT INTO acquisition VALUES(3,'5337b04d3f1aaabedadbeaacd737f955c200090d',2,'in/donor-A-7-00002.TCF',724091,1795943540773715355,'tcf','donor-A-7-00002','2024-01-08T08:00:10','SIM0001',1.3369999999999999662,0.53200000000000002842,1.1999999999999999555,0.10000000000000000555,1,0,'a3e8c689e84e4e888511eadb1b9e1d51','2026-11-29T09:12:33.271490Z','2026-11-29T09:12:33.271490Z');
INSERT INTO acquisition VALUES(4,'3a2327f2b46fe9600ccfba01c5a87eb81467e34e',2,'in/donor-A-7-00003.TCF',1750357,1795943546793715571,'tcf','donor-A-7-00003','2024-01-08T08:00:15','SIM0001',1.3369999999999999662,0.53200000000000002842,1.1999999999999999555,0.10000000000000000555,1,0,'3e3423a96a3d463db168014645f52af0','2026-11-29T09:12:33.852411Z','2026-11-29T09:12:33.852411Z');
CREATE TABLE run (
	id INTEGER NOT NULL, 
	acquisition_id INTEGER NOT NULL, 
	recipe_id TEXT NOT NULL, 
	model_id TEXT NOT NULL, 
	outcome TEXT NOT NULL, 
	reason TEXT, 
	message TEXT, 
	checks JSON NOT NULL, 
	tries INTEGER NOT NULL, 
	seconds DOUBLE, 
	finished_at VARCHAR(27) NOT NULL, 
	CONSTRAINT pk_run PRIMARY KEY (id), 
	CONSTRAINT ck_run_reason CHECK (outcome = 'measured' OR reason IS NOT NULL), 
	CONSTRAINT ck_run_outcome CHECK (outcome IN ('measured', 'rejected', 'set_aside')), 
	CONSTRAINT fk_run_acquisition_id FOREIGN KEY(acquisition_id) REFERENCES acquisition (id), 
	CONSTRAINT fk_run_model_id FOREIGN KEY(model_id) REFERENCES model (id), 
	CONSTRAINT fk_run_recipe_id FOREIGN KEY(recipe_id) REFERENCES recipe (id), 
	CONSTRAINT uq_run_acquisition_recipe_model UNIQUE (acquisition_id, recipe_id, model_id)
);
INSERT INTO run VALUES(1,1,'0b3129b4eeef8f8b','reference@4099066bd024','measured',NULL,NULL,'[{"code":"non_physical_fraction","limit":0.001,"passed":true,"sense":"max","unit":"of the voxels","value":0.0},{"code":"medium_offset_ri","limit":0.004,"passed":true,"sense":"max","unit":"","value":1.239776614703203e-08},{"code":"unprotected_parts","limit":3.0,"passed":true,"sense":"max","unit":"parts","value":2.0}]',1,1.178217376000020522,'2026-11-29T09:12:32.445181Z');
INSERT INTO run VALUES(2,2,'0b3129b4eeef8f8b','reference@4099066bd024','measured',NULL,NULL,'[{"code":"non_physical_fraction","limit":0.001,"passed":true,"sense":"max","unit":"of the voxels","value":0.0},{"code":"medium_offset_ri","limit":0.004,"passed":true,"sense":"max","unit":"","value":1.239776614703203e-08},{"code":"unprotected_parts","limit":3.0,"passed":true,"sense":"max","unit":"parts","value":2.0}]',1,0.79039742399993428989,'2026-11-29T09:12:33.261877Z');
INSERT INTO run VALUES(3,3,'0b3129b4eeef8f8b','reference@4099066bd024','measured',NULL,NULL,'[{"code":"non_physical_fraction","limit":0.001,"passed":true,"sense":"max","unit":"of the voxels","value":0.0},{"code":"medium_offset_ri","limit":0.004,"passed":true,"sense":"max","unit":"","value":1.239776614703203e-08},{"code":"unprotected_parts","limit":3.0,"passed":true,"sense":"max","unit":"parts","value":2.0}]',1,0.5568539269999064345,'2026-11-29T09:12:33.832966Z');
INSERT INTO run VALUES(4,4,'0b3129b4eeef8f8b','reference@4099066bd024','rejected','touches_border','donor-A-7-00003.TCF: touches_border is 1; the recipe allows at most 0.','[{"code":"non_physical_fraction","limit":0.001,"passed":true,"sense":"max","unit":"of the voxels","value":0.0},{"code":"medium_offset_ri","limit":0.004,"passed":true,"sense":"max","unit":"","value":1.239776614703203e-08},{"code":"unprotected_parts","limit":3.0,"passed":true,"sense":"max","unit":"parts","value":2.0}]',1,0.6108644879999474142,'2026-11-29T09:12:34.470223Z');
CREATE TABLE cell (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	time_index INTEGER NOT NULL, 
	centre_z_um DOUBLE, 
	centre_y_um DOUBLE, 
	centre_x_um DOUBLE, 
	volume_fl DOUBLE, 
	surface_area_um2 DOUBLE, 
	sphericity DOUBLE, 
	dry_mass_pg DOUBLE, 
	protein_density_g_dl DOUBLE, 
	mean_ri DOUBLE, 
	max_ri DOUBLE, 
	volume_half_contrast_fl DOUBLE, 
	dry_mass_half_contrast_pg DOUBLE, 
	dry_mass_total_pg DOUBLE, 
	accepted BOOLEAN NOT NULL, 
	reason TEXT, 
	checks JSON NOT NULL, 
	tomogram_path TEXT, 
	mean_ri_uncertainty DOUBLE, volume_uncertainty_fl DOUBLE, dry_mass_uncertainty_pg DOUBLE, thumbnail_png BLOB, 
	CONSTRAINT pk_cell PRIMARY KEY (id), 
	CONSTRAINT ck_cell_reason CHECK (accepted OR reason IS NOT NULL), 
	CONSTRAINT fk_cell_run_id FOREIGN KEY(run_id) REFERENCES run (id), 
	CONSTRAINT uq_cell_run_number UNIQUE (run_id, number)
);
INSERT INTO cell VALUES(1,1,1,0,10.013164409743751548,7.7384255557503429656,7.2026420322140651819,467.74600000000009459,427.77050781250000001,0.68120841894303263419,63.166506201973056989,13.504446045925156738,1.3640088920918502779,1.4077999591827392578,462.31000000000011594,65.08469201414116867,66.183448698520678022,1,NULL,'[{"code":"non_physical_voxels","limit":0.0,"passed":true,"sense":"max","unit":"voxels","value":0.0},{"code":"volume_low","limit":30.0,"passed":true,"sense":"min","unit":"fL","value":467.7460000000001},{"code":"lobes","limit":1.0,"passed":true,"sense":"max","unit":"","value":1.0},{"code":"touches_border","limit":0.0,"passed":true,"sense":"max","unit":"","value":0.0},{"code":"volume_high","limit":3000.0,"passed":true,"sense":"max","unit":"fL","value":467.7460000000001},{"code":"solidity","limit":0.55,"passed":true,"sense":"min","unit":"","value":0.7286329140803564},{"code":"mean_ri_low","limit":1.345,"passed":true,"sense":"min","unit":"","value":1.3640088920918503},{"code":"mean_ri_high","limit":1.45,"passed":true,"sense":"max","unit":"","value":1.3640088920918503}]','wbcd-output/15/158cada05de7d3f47de553ba14f90d5aab7e979c-0b3129b4eeef8f8b-001.ome.zarr',NULL,NULL,NULL,X'89504e47');
INSERT INTO cell VALUES(2,2,1,0,10.032118611937022479,7.515166124558497529,7.8166866880849283916,501.13000000000010912,368.48193359374999998,0.82800862349606263457,82.012134136867629761,16.365440930869780799,1.3697308818617395242,1.4096000194549560546,482.30800000000010642,83.092659749021592578,84.332520501613643659,1,NULL,'[{"code":"non_physical_voxels","limit":0.0,"passed":true,"sense":"max","unit":"voxels","value":0.0},{"code":"volume_low","limit":30.0,"passed":true,"sense":"min","unit":"fL","value":501.1300000000001},{"code":"lobes","limit":1.0,"passed":true,"sense":"max","unit":"","value":1.0},{"code":"touches_border","limit":0.0,"passed":true,"sense":"max","unit":"","value":0.0},{"code":"volume_high","limit":3000.0,"passed":true,"sense":"max","unit":"fL","value":501.1300000000001},{"code":"solidity","limit":0.55,"passed":true,"sense":"min","unit":"","value":0.8501383608482527},{"code":"mean_ri_low","limit":1.345,"passed":true,"sense":"min","unit":"","value":1.3697308818617395},{"code":"mean_ri_high","limit":1.45,"passed":true,"sense":"max","unit":"","value":1.3697308818617395}]','wbcd-output/18/18669e0b63d48cca73919fd7eb20dba47c1b4639-0b3129b4eeef8f8b-001.ome.zarr',NULL,NULL,NULL,X'89504e47');
INSERT INTO cell VALUES(3,3,1,0,10.014446534510202724,7.284361163362754965,7.4384845415521141376,207.33000000000004093,190.23992919921874999,0.89047940721044793743,33.647265235376401903,16.228845432583959507,1.369457690865167887,1.3851000070571899414,199.95000000000004547,34.240575642995878524,34.740601768493661438,1,NULL,'[{"code":"non_physical_voxels","limit":0.0,"passed":true,"sense":"max","unit":"voxels","value":0.0},{"code":"volume_low","limit":30.0,"passed":true,"sense":"min","unit":"fL","value":207.33000000000004},{"code":"lobes","limit":1.0,"passed":true,"sense":"max","unit":"","value":1.0},{"code":"touches_border","limit":0.0,"passed":true,"sense":"max","unit":"","value":0.0},{"code":"volume_high","limit":3000.0,"passed":true,"sense":"max","unit":"fL","value":207.33000000000004},{"code":"solidity","limit":0.55,"passed":true,"sense":"min","unit":"","value":0.9024465711217762},{"code":"mean_ri_low","limit":1.345,"passed":true,"sense":"min","unit":"","value":1.3694576908651679},{"code":"mean_ri_high","limit":1.45,"passed":true,"sense":"max","unit":"","value":1.3694576908651679}]','wbcd-output/53/5337b04d3f1aaabedadbeaacd737f955c200090d-0b3129b4eeef8f8b-001.ome.zarr',NULL,NULL,NULL,X'89504e47');
INSERT INTO cell VALUES(4,4,1,0,9.9998239625818143849,12.368998991878740412,3.2358358962812099335,390.82600000000007867,306.33068847656249999,0.84388366952907367668,62.414639037790379917,15.96993010643876687,1.3689398602128775017,1.4119000434875488281,379.67800000000011095,63.371205919199084634,64.248175320625321659,0,'touches_border','[{"code":"non_physical_voxels","limit":0.0,"passed":true,"sense":"max","unit":"voxels","value":0.0},{"code":"volume_low","limit":30.0,"passed":true,"sense":"min","unit":"fL","value":390.8260000000001},{"code":"lobes","limit":1.0,"passed":true,"sense":"max","unit":"","value":1.0},{"code":"touches_border","limit":0.0,"passed":false,"sense":"max","unit":"","value":1.0},{"code":"volume_high","limit":3000.0,"passed":true,"sense":"max","unit":"fL","value":390.8260000000001},{"code":"solidity","limit":0.55,"passed":true,"sense":"min","unit":"","value":0.8475549285267262},{"code":"mean_ri_low","limit":1.345,"passed":true,"sense":"min","unit":"","value":1.3689398602128775},{"code":"mean_ri_high","limit":1.45,"passed":true,"sense":"max","unit":"","value":1.3689398602128775}]','wbcd-output/3a/3a2327f2b46fe9600ccfba01c5a87eb81467e34e-0b3129b4eeef8f8b-001.ome.zarr',NULL,NULL,NULL,X'89504e47');
CREATE TABLE prediction (
	id INTEGER NOT NULL, 
	cell_id INTEGER NOT NULL, 
	model_id TEXT NOT NULL, 
	label TEXT NOT NULL, 
	probability DOUBLE NOT NULL, 
	probabilities JSON NOT NULL, 
	flags JSON NOT NULL, 
	counted_as TEXT NOT NULL, 
	CONSTRAINT pk_prediction PRIMARY KEY (id), 
	CONSTRAINT ck_prediction_probability CHECK (probability BETWEEN 0 AND 1), 
	CONSTRAINT fk_prediction_cell_id FOREIGN KEY(cell_id) REFERENCES cell (id), 
	CONSTRAINT fk_prediction_model_id FOREIGN KEY(model_id) REFERENCES model (id), 
	CONSTRAINT uq_prediction_cell_model UNIQUE (cell_id, model_id)
);
INSERT INTO prediction VALUES(1,1,'reference@4099066bd024','monocyte',0.99802274506636323714,'{"b_lymphocyte":0.0004084169550618494,"monocyte":0.9980227450663632,"myelocyte":0.0005811472693591052,"t_lymphocyte":0.0009876907092157604}','[]','monocyte');
INSERT INTO prediction VALUES(2,2,'reference@4099066bd024','myelocyte',0.99739014141155180048,'{"b_lymphocyte":0.00020571361204830283,"monocyte":0.0020450649770058288,"myelocyte":0.9973901414115518,"t_lymphocyte":0.000359079999394159}','[]','myelocyte');
INSERT INTO prediction VALUES(3,3,'reference@4099066bd024','t_lymphocyte',0.99837378591649872383,'{"b_lymphocyte":0.00033351645001193734,"monocyte":0.0006855991385769905,"myelocyte":0.0006070984949122942,"t_lymphocyte":0.9983737859164987}','[]','t_lymphocyte');
CREATE TABLE review (
	id INTEGER NOT NULL, 
	cell_id INTEGER NOT NULL, 
	reviewer TEXT NOT NULL, 
	label TEXT NOT NULL, 
	note TEXT, 
	at VARCHAR(27) NOT NULL, previous_hash TEXT, row_hash TEXT, 
	CONSTRAINT pk_review PRIMARY KEY (id), 
	CONSTRAINT fk_review_cell_id FOREIGN KEY(cell_id) REFERENCES cell (id)
);
INSERT INTO review VALUES(1,1,'root','monocyte',NULL,'2026-11-29T09:12:36.373505Z','0000000000000000000000000000000000000000000000000000000000000000','2a82f2c1da81865c1a2f2e005dd7d127506727e20503ab6c55582ab5e30b0e4c');
CREATE TABLE sample_label (
	id INTEGER NOT NULL, 
	sample_id INTEGER NOT NULL, 
	label TEXT NOT NULL, 
	purity DOUBLE, 
	labelled_by TEXT NOT NULL, 
	note TEXT, 
	at VARCHAR(27) NOT NULL, 
	previous_hash TEXT, 
	row_hash TEXT, 
	CONSTRAINT pk_sample_label PRIMARY KEY (id), 
	CONSTRAINT ck_sample_label_purity CHECK (purity > 0 AND purity <= 1), 
	CONSTRAINT fk_sample_label_sample_id FOREIGN KEY(sample_id) REFERENCES sample (id)
);
INSERT INTO sample_label VALUES(1,2,'monocyte',0.94999999999999995559,'root',NULL,'2026-11-29T09:12:35.667147Z','0000000000000000000000000000000000000000000000000000000000000000','24b247f26aea14018875f476f12c53a142d48c2788b80a9c77e3b8ad9ca6cb22');
CREATE TABLE audit_head (
	name TEXT NOT NULL, 
	last_id BIGINT NOT NULL, 
	row_hash TEXT NOT NULL, 
	CONSTRAINT pk_audit_head PRIMARY KEY (name)
);
INSERT INTO audit_head VALUES('event',0,'0000000000000000000000000000000000000000000000000000000000000000');
INSERT INTO audit_head VALUES('review',1,'2a82f2c1da81865c1a2f2e005dd7d127506727e20503ab6c55582ab5e30b0e4c');
INSERT INTO audit_head VALUES('sample_label',1,'24b247f26aea14018875f476f12c53a142d48c2788b80a9c77e3b8ad9ca6cb22');
CREATE INDEX ix_event_kind ON event (kind, id);
CREATE INDEX ix_source_file_content_id ON source_file (content_id);
CREATE INDEX ix_acquisition_open ON acquisition (tries) WHERE tries > 0;
CREATE INDEX ix_acquisition_sample_id ON acquisition (sample_id);
CREATE INDEX ix_run_finished_at ON run (finished_at);
CREATE INDEX ix_run_outcome ON run (outcome);
CREATE INDEX ix_cell_refused ON cell (run_id, time_index, reason) WHERE NOT accepted;
CREATE INDEX ix_cell_run_id_accepted_time_index ON cell (run_id, accepted, time_index);
CREATE INDEX ix_prediction_counting ON prediction (cell_id, model_id, counted_as);
CREATE INDEX ix_review_cell_id ON review (cell_id);
CREATE VIEW differential_count AS
WITH RECURSIVE counted AS (
  SELECT sample.name AS sample, prediction.model_id AS model, run.recipe_id AS recipe,
         prediction.counted_as AS label, COUNT(*) AS n
  FROM run
  JOIN cell ON cell.run_id = run.id AND cell.accepted AND cell.time_index = 0
  JOIN prediction ON prediction.cell_id = cell.id
  JOIN acquisition ON acquisition.id = run.acquisition_id
  JOIN sample ON sample.id = acquisition.sample_id
  WHERE run.outcome = 'measured'
  GROUP BY sample.name, prediction.model_id, run.recipe_id, prediction.counted_as
), totalled AS (
  SELECT sample, model, recipe, label, n,
         CAST(SUM(n) OVER (PARTITION BY sample, model, recipe) AS BIGINT) AS total
  FROM counted
), newton (n, total, square, root, step) AS (
  SELECT n, total, square, 1.0 + square / 2.0, 0
  FROM (
    SELECT DISTINCT n, total,
           CAST(n AS DOUBLE PRECISION) * (total - n) / total + 0.9603647051735313 AS square
    FROM totalled
  ) AS pairs
  UNION ALL
  SELECT n, total, square, (root + square / root) / 2.0, step + 1 FROM newton WHERE step < 40
)
SELECT totalled.sample, totalled.model, totalled.recipe, totalled.label, totalled.n, totalled.total,
       CAST(totalled.n AS DOUBLE PRECISION) / totalled.total AS fraction,
       CASE WHEN totalled.n = 0 THEN 0.0
            ELSE (totalled.n + 1.9207294103470627 - 1.959963984540054 * newton.root)
                 / (totalled.total + 3.8414588206941255) END AS ci_low,
       CASE WHEN totalled.n = totalled.total THEN 1.0
            ELSE (totalled.n + 1.9207294103470627 + 1.959963984540054 * newton.root)
                 / (totalled.total + 3.8414588206941255) END AS ci_high
FROM totalled
JOIN newton ON newton.n = totalled.n AND newton.total = totalled.total AND newton.step = 40;
CREATE VIEW rejection_count AS
SELECT sample.name AS sample, run.model_id AS model, run.recipe_id AS recipe, run.outcome AS outcome,
       run.reason AS reason, COUNT(*) AS n, MAX(run.finished_at) AS last_at
FROM run
JOIN acquisition ON acquisition.id = run.acquisition_id
JOIN sample ON sample.id = acquisition.sample_id
WHERE run.outcome <> 'measured'
GROUP BY sample.name, run.model_id, run.recipe_id, run.outcome, run.reason;
CREATE VIEW cell_rejection_count AS
SELECT sample.name AS sample, run.model_id AS model, run.recipe_id AS recipe, cell.reason AS reason, COUNT(*) AS n
FROM cell
JOIN run ON run.id = cell.run_id
JOIN acquisition ON acquisition.id = run.acquisition_id
JOIN sample ON sample.id = acquisition.sample_id
WHERE NOT cell.accepted AND cell.time_index = 0
GROUP BY sample.name, run.model_id, run.recipe_id, cell.reason;
CREATE VIEW backlog AS
SELECT 'waiting' AS state, COUNT(DISTINCT source_file.content_id) AS n, MIN(source_file.seen_at) AS oldest, 0 AS max_tries
FROM source_file
WHERE NOT EXISTS (SELECT 1 FROM acquisition WHERE acquisition.content_id = source_file.content_id)
UNION ALL
SELECT 'begun', COUNT(*), MIN(acquisition.begun_at), COALESCE(MAX(acquisition.tries), 0)
FROM acquisition WHERE acquisition.tries > 0 AND acquisition.tries = 1
UNION ALL
SELECT 'retried', COUNT(*), MIN(acquisition.begun_at), COALESCE(MAX(acquisition.tries), 0)
FROM acquisition WHERE acquisition.tries > 0 AND acquisition.tries > 1;
CREATE INDEX ix_sample_label_sample_id ON sample_label (sample_id);
CREATE TRIGGER event_append_only_update BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'event is append-only'); END;
CREATE TRIGGER event_append_only_delete BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'event is append-only'); END;
CREATE TRIGGER event_chained BEFORE INSERT ON event
WHEN NEW.row_hash IS NULL
  OR NEW.id IS NOT (SELECT last_id + 1 FROM audit_head WHERE name = 'event')
  OR NEW.previous_hash IS NOT (SELECT row_hash FROM audit_head WHERE name = 'event')
BEGIN SELECT RAISE(ABORT, 'event is a hash chain: rows are added by wbcd only'); END;
CREATE TRIGGER event_head AFTER INSERT ON event
BEGIN UPDATE audit_head SET last_id = NEW.id, row_hash = NEW.row_hash WHERE name = 'event'; END;
CREATE TRIGGER review_append_only_update BEFORE UPDATE ON review BEGIN SELECT RAISE(ABORT, 'review is append-only'); END;
CREATE TRIGGER review_append_only_delete BEFORE DELETE ON review BEGIN SELECT RAISE(ABORT, 'review is append-only'); END;
CREATE TRIGGER review_chained BEFORE INSERT ON review
WHEN NEW.row_hash IS NULL
  OR NEW.id IS NOT (SELECT last_id + 1 FROM audit_head WHERE name = 'review')
  OR NEW.previous_hash IS NOT (SELECT row_hash FROM audit_head WHERE name = 'review')
BEGIN SELECT RAISE(ABORT, 'review is a hash chain: rows are added by wbcd only'); END;
CREATE TRIGGER review_head AFTER INSERT ON review
BEGIN UPDATE audit_head SET last_id = NEW.id, row_hash = NEW.row_hash WHERE name = 'review'; END;
CREATE TRIGGER sample_label_append_only_update BEFORE UPDATE ON sample_label BEGIN SELECT RAISE(ABORT, 'sample_label is append-only'); END;
CREATE TRIGGER sample_label_append_only_delete BEFORE DELETE ON sample_label BEGIN SELECT RAISE(ABORT, 'sample_label is append-only'); END;
CREATE TRIGGER sample_label_chained BEFORE INSERT ON sample_label
WHEN NEW.row_hash IS NULL
  OR NEW.id IS NOT (SELECT last_id + 1 FROM audit_head WHERE name = 'sample_label')
  OR NEW.previous_hash IS NOT (SELECT row_hash FROM audit_head WHERE name = 'sample_label')
BEGIN SELECT RAISE(ABORT, 'sample_label is a hash chain: rows are added by wbcd only'); END;
CREATE TRIGGER sample_label_head AFTER INSERT ON sample_label
BEGIN UPDATE audit_head SET last_id = NEW.id, row_hash = NEW.row_hash WHERE name = 'sample_label'; END;
CREATE VIEW cell_label AS
SELECT cell.id AS cell_id, review.label AS label, 'review' AS source, CAST(NULL AS DOUBLE PRECISION) AS purity
FROM (SELECT MAX(id) AS id FROM review GROUP BY cell_id) AS newest
JOIN review ON review.id = newest.id
JOIN cell ON cell.id = review.cell_id AND cell.accepted
UNION ALL
SELECT cell.id, sample_label.label, 'sample', sample_label.purity
FROM (SELECT MAX(id) AS id FROM sample_label GROUP BY sample_id) AS newest
JOIN sample_label ON sample_label.id = newest.id
JOIN acquisition ON acquisition.sample_id = sample_label.sample_id
JOIN run ON run.acquisition_id = acquisition.id
JOIN cell ON cell.run_id = run.id AND cell.accepted
WHERE NOT EXISTS (SELECT 1 FROM review WHERE review.cell_id = cell.id);
COMMIT;
