DROP TABLE operator_alarms;
DROP TABLE session_vitals;
